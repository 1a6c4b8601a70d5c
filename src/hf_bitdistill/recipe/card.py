"""What a student's folder says of it: a card for people and for the Hub, and a record by which it can be measured again."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml

from ..atomic import write_text
from ..evaluation.record import Measurement, Record
from ..hub.card import CITATION, TAGS, TERNARY_TAGS, base_model_id, hub_model_id
from ..report.tables import markdown_table
from ..sizes import bytes_by_kind
from .examples import Examples
from .progress import duration
from .result import PACKED_ROW, RecipeResult, Row


TEMPLATE = Path(__file__).with_name("card_template.md")
EVAL_RESULTS = ".eval_results"


def write_card(folder: Path, name: str, result: RecipeResult, base: str, examples: Examples, rows: str) -> None:
    """`README.md` of a folder that will be called `name`, and the record of the packed student in it and beside the trainable one that it was
    packed from.

    Args:
        rows: fingerprint of the evaluation split's.
    """
    record = _record(result, examples, rows)
    for place in (folder, result.paths["student"]):
        record.write(place)
    title = result.output.resolve().name
    card = ModelCard.from_template(
        metadata(title, result, base, record.how),
        template_path=str(TEMPLATE),
        **contents(folder, title, name, result, base, record.how),
    )
    card.save(folder / "README.md")
    entries = eval_results(result, record.how)
    if entries:
        (folder / EVAL_RESULTS).mkdir(exist_ok=True)
        write_text(folder / EVAL_RESULTS / "bitdistill.yaml", yaml.safe_dump(entries, sort_keys=False))


# ---- Metadata ----


def metadata(title: str, result: RecipeResult, base: str, how: Measurement) -> ModelCardData:
    """What the Hub reads of the card: base model, data, scores. What is not known is absent."""
    row = _packed(result)
    dataset = _hub_dataset(how)
    base_id = base_model_id(base)
    name = how.task.name if how.task is not None else how.kind
    scores = [
        EvalResult(
            task_type="text-generation",
            dataset_type=dataset or name,
            dataset_name=name,
            dataset_config=how.dataset_config,
            dataset_split=how.split,
            dataset_revision=how.dataset_revision,
            metric_type=row.score["metric"],
            metric_name=row.score["metric"].replace("_", " "),
            metric_value=round(row.score["value"], 4),
            metric_args={"stderr": round(row.score["stderr"], 4), "n": row.score["n"]},
        )
    ]
    return ModelCardData(
        library_name="transformers",
        base_model=base_id,
        base_model_relation="quantized" if base_id else None,
        license=_license(base),
        pipeline_tag="text-generation",
        datasets=[dataset] if dataset else None,
        metrics=[row.score["metric"]],
        tags=[*TAGS, *TERNARY_TAGS],
        model_name=title,
        eval_results=scores,
    )


def eval_results(result: RecipeResult, how: Measurement) -> list[dict[str, Any]]:
    """For `.eval_results/`, of a dataset that is on the Hub."""
    dataset, row = _hub_dataset(how), _packed(result)
    if dataset is None:
        return []
    entry = EvalResultEntry(
        dataset_id=dataset,
        task_id=how.dataset_config or "default",
        value=round(row.score["value"], 4),
        dataset_revision=how.dataset_revision,
        date=result.machine.get("date"),
        notes=f"{row.score['metric']}, {row.score['n']} rows, standard error {row.score['stderr']:.4f}",
    )
    return eval_result_entries_to_yaml([entry])


def _hub_dataset(how: Measurement) -> str | None:
    """The id on the Hub of the data, if that is where it was read from."""
    if how.dataset is not None:
        return hub_model_id(how.dataset)
    return how.task.hub_id if how.task is not None and how.data_dir is None else None


def _license(base: str) -> str | None:
    """What a base model's own card says, if it lies beside the model."""
    card = Path(base).expanduser() / "README.md"
    if not card.is_file():
        return None
    try:
        return ModelCard.load(card, ignore_metadata_errors=True).data.license
    except (ValueError, OSError, yaml.YAMLError):
        return None


# ---- Text ----


def contents(
    folder: Path, title: str, repo: str, result: RecipeResult, base: str, how: Measurement
) -> dict[str, str | None]:
    """The fields of the template."""
    header, rows = result.cells()
    sizes = bytes_by_kind(folder)
    ternary = sizes.ternary_share
    given = result.settings.get("teacher")
    task = how.task
    machine = ", ".join(f"{name} {value}" for name, value in result.machine.items())
    return {
        "name": title,
        "repo": repo,
        "base": _link(base),
        "share": f"{ternary:.0%}",
        "teacher": _link(given) if given else None,
        "data": _data(result),
        "prompt": task.prompt if task is not None else None,
        "answers": ", ".join(task.label_words) if task is not None and task.label_words else None,
        "scores": markdown_table(header, rows),
        "sentences": "\n\n".join(result.sentences()),
        "sizes": sizes.markdown(),
        "speed": _speed(result),
        "command": command(result, base),
        "stages": markdown_table(["stage", "steps", "tokens", "time"], _stages(result)),
        "choices": "\n".join(f"- {choice}" for choice in result.choices) or "- nothing",
        "machine": machine,
        "kept": ", ".join(result.kept) or None,
        "citation": CITATION,
    }


def command(result: RecipeResult, base: str) -> str:
    """The command line of the run, with names that mean something elsewhere: of folders only the last part."""
    words = ["bitdistill", "run"]
    for name, value in {"model": base, **result.settings}.items():
        if name in ("plan", "push_to", "push_private"):
            continue
        values = value if isinstance(value, (list, tuple)) else [value]
        words += [f"--{name}", *(_public(name, each) for each in values)]
    return shlex.join(words)


def _public(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value)
    if name == "model":
        return base_model_id(text) or Path(text).name
    return Path(text).name if os.path.isabs(text) or os.path.exists(text) else text


def _data(result: RecipeResult) -> str:
    """The line on the examples, without the folder that they lie in."""
    given = result.settings.get("dataset")
    return result.data.replace(given, _public("dataset", given)) if given else result.data


def _link(model: str) -> str:
    found = base_model_id(model)
    return f"[{found}](https://huggingface.co/{found})" if found else f"`{Path(model).name}`, which is not on the Hub"


def _stages(result: RecipeResult) -> list[list[str]]:
    planned = {each["title"]: each for each in result.plan.get("stages", [])}
    rows = []
    for title, seconds in result.seconds.items():
        steps, tokens = (planned.get(title, {}).get(name, 0) for name in ("steps", "tokens"))
        rows.append([title, f"{steps:,}" if steps else "", f"{tokens:,}" if tokens else "", duration(seconds)])
    return rows


def _speed(result: RecipeResult) -> str | None:
    """Tokens a second of what was timed, with the processor and its threads."""
    rows = [[row.name, f"{row.tokens_per_second:,.0f}"] for row in result.table if row.tokens_per_second]
    if not rows:
        return None
    where = f"{result.machine.get('processor', 'this CPU')}, {result.machine.get('threads')} threads"
    return "\n\n".join([f"Writing 32 tokens after 32, on {where}.", markdown_table(["", "tokens/s"], rows)])


def _packed(result: RecipeResult) -> Row:
    return next(row for row in result.table if row.name == PACKED_ROW)


def _record(result: RecipeResult, examples: Examples, rows: str) -> Record:
    row = _packed(result)
    score = row.score
    scores = {
        "task": examples.task.name if examples.task is not None else examples.how.kind,
        score["metric"]: score["value"],
        f"{score['metric']}_stderr": score["stderr"],
        "n": score["n"],
        "chance_level": score["chance"],
        **score["more"],
    }
    return Record(scores, examples.how, rows, "bitdistill run", row.name)
