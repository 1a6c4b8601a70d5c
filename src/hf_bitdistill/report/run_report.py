"""`write_report`: everything that a run folder says, on one HTML page without a single request to anywhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files.weight_files import size_of_weights
from ..pages.figures import plot_bars, plot_panels
from ..pages.html import image, write_page
from ..pages.tables import html_table
from .loss_labels import loss_names, loss_units
from .weight_report import measure_weights, plot_histograms, plot_zeros, student_options


# What a bar chart can show of an evaluation, and how it is called.
_METRICS = {
    "accuracy": "accuracy",
    "f1": "macro F1",
    "matthews_correlation": "Matthews correlation",
    "exact_match": "exact match",
    "rougeLsum": "ROUGE-Lsum",
    "token_accuracy": "token accuracy",
    "perplexity": "perplexity (lower is better)",
    "tokens_per_second": "tokens a second in the evaluation",
}


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error


def _last_state(run: Path) -> dict[str, Any] | None:
    """The trainer's state: of the end of the run, or of its last checkpoint."""
    from transformers.trainer import TRAINER_STATE_NAME
    from transformers.trainer_utils import get_last_checkpoint

    if (run / TRAINER_STATE_NAME).is_file():
        return _read(run / TRAINER_STATE_NAME)
    checkpoint = get_last_checkpoint(str(run))
    return _read(Path(checkpoint) / TRAINER_STATE_NAME) if checkpoint else None


def _losses(run: Path, figures: Path) -> str:
    state = _last_state(run)
    entries = [entry for entry in (state or {}).get("log_history", []) if "loss" in entry]
    if state is None or not entries:
        return ""
    panels: list[tuple[str, Any]] = []
    for name, label in loss_names().items():
        points = [(entry["step"], float(entry[name])) for entry in entries if name in entry]
        if points:
            panels.append((loss_units()[name], {label: tuple(zip(*points, strict=True))}))
    file = plot_panels("Training losses", figures / "losses.png", panels)
    text = f"{state['global_step']} steps. Each point is the mean since the one before."
    return f"<h2>Losses</h2><p>{text}</p>" + image(file)


def _evaluations(run: Path, compared: Mapping[str, Path], figures: Path) -> str:
    files = dict(compared)
    if (run / "evaluation.json").is_file():
        files["this run"] = run / "evaluation.json"
    if not files:
        return ""
    # (A nested value says how it was measured.)
    results = {
        name: {key: value for key, value in _read(file).items() if not isinstance(value, (dict, list))}
        for name, file in files.items()
    }
    parts = ["<h2>Scores</h2>"]
    for metric, label in _METRICS.items():
        values = {name: float(result[metric]) for name, result in results.items() if metric in result}
        if values:
            parts.append(image(plot_bars(label, figures / f"{metric}.png", values, label)))
    keys = list(dict.fromkeys(key for result in results.values() for key in result))
    rows = [[name, *(_cell(result.get(key)) for key in keys)] for name, result in results.items()]
    return "\n".join([*parts, html_table(["model", *keys], rows)])


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _weights(run: Path, before: Path | None, figures: Path) -> str:
    options = student_options(run)
    if options is None:
        return ""
    after = measure_weights(run, options)
    if not after:
        return ""
    measured = {"after": after}
    if before is not None:
        # A student's folder knows its own latent weights, a full-precision one holds them under the same names.
        names = None if student_options(before) else set(after)
        source = measure_weights(before, options, names)
        if not source:
            raise ValueError(f"{before} holds none of the projections of {run}: it is not what the run started from")
        measured = {"before": source, "after": after}
    shares = {
        label: [sum(getattr(layer, name) for layer in layers.values()) / len(layers) for name in ("zeros", "close")]
        for label, layers in measured.items()
    }
    return "\n".join(
        [
            "<h2>Weights</h2>",
            html_table(
                ["", "zeros", "within 0.1 scales of a boundary"],
                [[label, *(f"{100 * value:.1f} %" for value in values)] for label, values in shares.items()],
            ),
            image(plot_histograms("Where the latent weights lie", figures / "weights.png", measured)),
            image(plot_zeros("Zeros by projection", figures / "zeros.png", measured)),
        ]
    )


def _warm_start(run: Path) -> str:
    if not (run / "warm_start.json").is_file():
        return ""
    report = _read(run / "warm_start.json")
    rows = [
        [f"{w['first_layer']} to {w['last_layer']}", _cell(w["error_before"]), _cell(w["error_after"])]
        for w in report["windows"]
    ]
    text = f"{report['calibration_tokens']:,} tokens, {report['seconds']:.0f} s."
    return f"<h2>Warm start</h2><p>{text}</p>" + html_table(["layers", "error before", "after"], rows)


def _sizes(run: Path) -> str:
    folders = {folder: folder.name for folder in sorted(run.iterdir()) if folder.is_dir()}
    rows = []
    for folder, name in {run: "this run", **folders}.items():
        size = size_of_weights(folder)
        if size and not name.startswith("checkpoint-"):
            rows.append([name, f"{size / 1e6:.2f} MB"])
    return "<h2>Size on disk</h2>" + html_table(["model", "safetensors"], rows) if rows else ""


def write_report(
    run: Path,
    output: Path | None = None,
    before: Path | None = None,
    compared: Mapping[str, Path] | None = None,
) -> Path:
    """Write the report of a run folder; only what is in it (and in the files named here) appears.

    Args:
        run: output folder of `bitdistill pretrain`, `distill` or `warm-start`, or of a `Trainer`: the losses of its
            `trainer_state.json`, `evaluation.json`, `warm_start.json`, the latent weights, sizes of it and its subfolders.
        output: the page; its figures go into a folder beside it, and into the page. Default: `report.html` in `run`.
        before: the model the run started from (a student, or the full-precision source), for the weights.
        compared: name -> JSON of `bitdistill evaluate`, of a teacher or a baseline, for the bars.

    Returns:
        The page's path.

    Raises:
        FileNotFoundError: a folder or a file is missing.
        ValueError: a file is not valid JSON, `before` has none of the projections, or there is nothing to report.
    """
    compared = dict(compared or {})
    for folder in (run, *([before] if before else [])):
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no folder {folder}")
    for file in compared.values():
        if not file.is_file():
            raise FileNotFoundError(f"there is no file {file}")
    output = output or run / "report.html"
    figures = output.with_suffix("")
    figures.mkdir(parents=True, exist_ok=True)
    found = [
        _losses(run, figures),
        _evaluations(run, compared, figures),
        _warm_start(run),
        _weights(run, before, figures),
    ]
    if not any(found):
        raise ValueError(f"{run} holds nothing to report: no trainer_state.json, evaluation.json, or student")
    write_page(output, run.resolve().name, [*found, _sizes(run)])
    return output
