"""The quickstart's report: `report.md`, its figures as PNG. It states nothing that the run did not measure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from ..report.figures import Curves, loss_names, loss_units, plot_panels, plot_points
from ..report.tables import markdown_table
from .corpus import QUICKSTART_PACKAGES
from .results import RunResult
from .scoring import AnswerScores, paired_difference
from .settings import QuickstartSettings
from .stages import StageLog


_WAYS = {
    "FP-SFT": "full precision, fine-tuned on the labels",
    "BitNet-SFT": "ternary, fine-tuned on the labels only: no SubLN, no continual pre-training, no teacher",
    "BitDistill": "ternary, calibrated SubLN, continual pre-training, then labels + logits + attention relations of FP-SFT",
}


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} MB"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _accuracy(scores: AnswerScores) -> str:
    return f"{_percent(scores.accuracy)} ± {100 * scores.standard_error:.1f}"


def summary(result: RunResult) -> str:
    """The comparison in a few lines of plain text."""
    lines = [f"{'chance':<12} {_accuracy(result.chance):>16}   perplexity {result.chance.perplexity:7.2f}"]
    for name, model in result.models.items():
        lines.append(
            f"{name:<12} {_accuracy(model.scores):>16}   perplexity {model.scores.perplexity:7.2f}"
            f"   {_size(model.weights_bytes):>9} on disk"
        )
    return "\n".join(lines)


def write_report(result: RunResult, output: Path) -> None:
    """Write `report.md` and its figures into `output`, and set `result.report`."""
    figures = plot_losses(result.logs, output)
    main = plot_main_result(result, output)
    result.report = output / "report.md"
    sections = [
        "# hf-bitdistill quickstart",
        f"`{result.settings.command}`, {result.machine['Date']}, {result.seconds / 60:.1f} minutes. "
        "Every number below was measured in this run.",
        _accuracy_section(result),
        f"![Held-out token accuracy against size on disk]({main})",
        _size_and_speed_section(result),
        _perplexity_section(result),
        _examples_section(result),
        "## Loss curves",
        *(f"![{title}]({file})" for title, file in figures.items()),
        _loss_text(result),
        _text_section(result),
        _run_section(result),
    ]
    result.report.write_text("\n\n".join(sections) + "\n", encoding="utf-8")


def _accuracy_section(result: RunResult) -> str:
    full = result.models["FP-SFT"].scores
    rows = [
        ["chance", "only how frequent each token is", _accuracy(result.chance), "", f"{result.chance.perplexity:.1f}"]
    ]
    for name, model in result.models.items():
        versus = "" if model.scores is full else _difference(model.scores, full)
        rows.append([f"**{name}**", _WAYS[name], _accuracy(model.scores), versus, f"{model.scores.perplexity:.2f}"])
    gain = _difference(result.models["BitDistill"].scores, result.models["BitNet-SFT"].scores)
    settings = result.settings
    return "\n\n".join(
        [
            "## Held-out answers",
            "The task: write the summary line of a function's or class's documentation, given its signature.",
            markdown_table(["model", "what it is", "token accuracy", "against FP-SFT", "perplexity"], rows),
            f"BitDistill against BitNet-SFT: {gain}. All on the same {len(full.tokens)} held-out examples "
            f"({sum(full.tokens):,} answer tokens). Token accuracy: how often the model's first choice is the true next "
            "token of the answer, given the true ones before it; perplexity: of the answer tokens. ± is one standard error "
            "(over examples; of a difference: paired). It does not contain the variation between seeds: this is one seed "
            f"({settings.seed}). Each model was saved, loaded again from disk and then measured; the ternary ones packed. "
            f"All three were fine-tuned from the same base model for {settings.fine_tuning_steps} steps of "
            f"{settings.batch_size} examples, the same examples in the same order, each with a learning rate of its own "
            f"chosen on validation text. BitDistill had {settings.pretraining_steps} steps of continual pre-training on "
            "plain text before that: that is part of the recipe, and computation the other two did not have.",
        ]
    )


def _difference(first: AnswerScores, second: AnswerScores) -> str:
    mean, error = paired_difference(first, second)
    return f"{100 * mean:+.1f} ± {100 * error:.1f} points"


def _size_and_speed_section(result: RunResult) -> str:
    full = result.models["FP-SFT"]
    rows = []
    for name, model in result.models.items():
        ratio = (
            f"{full.weights_bytes / model.weights_bytes:.2f}x / {full.projection_bytes / model.projection_bytes:.2f}x"
        )
        speed = result.speeds.get(name)
        rows.append(
            [
                f"`{model.folder}`",
                _size(model.weights_bytes),
                _size(model.projection_bytes),
                ratio,
                f"{speed.reading:,.0f}" if speed else "not measured",
                f"{speed.writing:,.0f}" if speed else "not measured",
            ]
        )
    header = ["saved model", "on disk", "of which projections", "smaller by (file / projections)"]
    return "\n\n".join(
        [
            "## Size and speed",
            markdown_table([*header, "reading, tokens/s", "writing, tokens/s"], rows),
            "On disk: `model.safetensors`. Projections are the linear layers that become ternary, 2 bits a weight; embeddings "
            "stay in bfloat16 in both, and in a model this small they are a large share (in a model of billions they are "
            "not). Reading: a prompt of 256 tokens; writing: 64 tokens, greedily, one sequence; medians, computed in "
            f"float32 with {result.settings.torch_threads} threads. Packed layers ran on: {result.machine['Packed layers']}. "
            "In a model this small the Python around a layer takes longer than its arithmetic, so little of what the kernels "
            "save can show.",
        ]
    )


def _perplexity_section(result: RunResult) -> str:
    rows = [[name, f"{value:.2f}"] for name, value in result.perplexities.items()]
    settings = result.settings
    return "\n\n".join(
        [
            "## Perplexity on held-out text, before fine-tuning",
            markdown_table(["model", "perplexity"], rows),
            f"{result.data['perplexity: held-out tokens']:,} tokens in blocks of {settings.block_size}. Continual "
            f"pre-training read {result.logs['continual pre-training'].tokens:,} tokens, with the next token and the full "
            "precision base model's logits as targets.",
        ]
    )


def _examples_section(result: RunResult) -> str:
    rows = [[f"`{shown.signature}`", shown.summary, shown.packed, shown.full] for shown in result.shown]
    return "\n\n".join(
        [
            "## The reloaded packed model at work",
            markdown_table(["held-out signature", "its documentation", "BitDistill, packed", "FP-SFT"], rows),
            "Loaded with `AutoModelForCausalLM.from_pretrained`, greedy `generate`; the first held-out examples, not a "
            "selection. A model of this size writes plausible documentation, not true one.",
        ]
    )


def _text_section(result: RunResult) -> str:
    rows = [[name, f"{value:,}"] for name, value in result.data.items()]
    return "\n\n".join(
        [
            "## Task and text",
            "The text is the docstrings of what is installed on this machine (standard library, "
            f"{', '.join(QUICKSTART_PACKAGES[1:])}), parsed from source files. A hash of a paragraph's first words decides "
            "whether it is held out, so that paragraphs which begin alike are on the same side, and whatever is held out "
            "here was also held out when the shipped base model was trained.",
            markdown_table(["", "number"], rows),
        ]
    )


def _run_section(result: RunResult) -> str:
    settings = result.settings
    names = [
        item.name for item in fields(QuickstartSettings) if item.name not in ("base_model", "command", "progress")
    ]
    stages = [[name, f"{seconds:.0f} s"] for name, seconds in result.stage_seconds.items()]
    stages.append(["**in total**", f"{result.seconds:.0f} s"])
    return "\n\n".join(
        [
            "## The run",
            markdown_table(["machine", ""], [[name, value] for name, value in result.machine.items()]),
            markdown_table(["stage", "wall time"], stages),
            markdown_table(["setting", "value"], [[name, str(getattr(settings, name))] for name in names]),
        ]
    )


def _loss_text(result: RunResult) -> str:
    last = {name: result.logs[name].losses[_labels_term(result.logs[name])][-1] for name in _WAYS}
    relation = "below" if last["BitDistill"] < last["FP-SFT"] else "above"
    return (
        f"BitDistill's cross entropy on the training labels ends {relation} that of FP-SFT ({last['BitDistill']:.2f} and "
        f"{last['FP-SFT']:.2f} nats a token). The two are not trained alike and these curves do not rank them: BitDistill's "
        "student has read the training documents in continual pre-training, their summary lines included, and its objective "
        "has the teacher's logits and relations besides the labels. What counts is the held-out accuracy above."
    )


def plot_main_result(result: RunResult, output: Path) -> str:
    """Draw the comparison of the three ways; returns the file's name."""
    points = {
        name: (model.weights_bytes / 1e6, 100 * model.scores.accuracy, 100 * model.scores.standard_error)
        for name, model in result.models.items()
    }
    title = f"Held-out token accuracy, with one standard error (chance: {_percent(result.chance.accuracy)})"
    file = output / "result.png"
    plot_points(title, file, points, "size on disk, MB", "token accuracy, %")
    return file.name


def _labels_term(log: StageLog) -> str:
    """The term that is the cross entropy on the labels, whatever else was trained on."""
    return "loss_ce" if "loss_ce" in log.losses else "loss"


def plot_losses(logs: dict[str, StageLog], output: Path) -> dict[str, str]:
    """Draw the loss curves; returns title -> file name."""
    files: dict[str, str] = {}

    def save(title: str, file: str, panels: Sequence[tuple[str, Curves]]) -> None:
        plot_panels(title, output / file, panels)
        files[title] = file

    labels_only = {
        name: (logs[name].steps, logs[name].losses[_labels_term(logs[name])]) for name in _WAYS if name in logs
    }
    save(
        "Cross entropy on the training labels, nats a token",
        "loss_fine_tuning.png",
        [(loss_units()["loss_ce"], labels_only)],
    )
    for name, file in (("BitDistill", "loss_distillation.png"), ("continual pre-training", "loss_pretraining.png")):
        log = logs[name]
        panels = [(loss_units()[loss], {loss_names()[loss]: (log.steps, log.losses[loss])}) for loss in log.losses]
        save(f"{name}: its losses", file, panels)
    return files
