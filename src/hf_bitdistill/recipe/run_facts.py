"""What a run knows of its student for the card, and the record by which the student can be measured again."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from ..evaluation.score_record import Record
from ..files.model_folder import RESULT_FILE
from ..hub.cards import CardFacts
from ..hub.cards.base_model_id import base_model_id
from ..modeling.sizes import bytes_by_kind
from ..pages.tables import markdown_table
from .examples import Examples
from .progress import duration
from .result import PACKED_ROW, RecipeResult, Row
from .settings import RecipeSettings


#: Who measured, in the record of a run's student.
BY = "bitdistill run"

# Settings that may name a file or a folder, and which numbers only what was not done would use, by how their names begin.
_PLACES = ("model", "teacher", "dataset", "corpus", "task")
_OF_CORPUS = ("corpus_", "pretrain_", "block_size", "dead_zone_leak")
_OF_START = ("window_", "warm_start_", "loss_unit", "extra_doublings")
_OF_TEACHER = ("teacher_",)
_OF_DISTILLATION = ("distill_", "logits_", "attention_", "hidden_", "temperature", "keep_only_better")
_OF_COMPARISON = ("compare_",)


def run_facts(folder: Path, name: str, result: RecipeResult, base: str | PathLike | None, record: Record) -> CardFacts:
    """For the card of the packed student in a folder that will be called `name`. (What a push publishes of a run, and in which form, is told
    by the push.)

    Args:
        base: the model that the run began with, an id or a folder.
        record: of the packed student.
    """
    header, rows = result.cells()
    pushed_to = result.settings.get("push_to")
    return CardFacts(
        title=pushed_to.split("/")[-1] if pushed_to else result.output.resolve().name,
        repo=name,
        config=AutoConfig.from_pretrained(folder),
        base=base,
        teacher=_given(result, "teacher"),
        distilled_by=f"`{BY}` of hf-bitdistill",
        record=record,
        date=result.machine.get("date"),
        data=_data(result),
        scores=markdown_table(header, rows),
        sentences=result.sentences(),
        sizes=bytes_by_kind(folder),
        speed=speed_table(
            {row.name: row.tokens_per_second for row in result.table}, result.timed_on or result.machine
        ),
        command=command(result, base),
        stages=markdown_table(["stage", "steps", "tokens", "time"], _stages(result)),
        settings=_numbers(result),
        choices=result.choices or ["nothing"],
        kept=result.kept,
        machine=", ".join(f"{name} {value}" for name, value in result.machine.items()),
    )


def with_run(folder: Path, facts: CardFacts, is_named: bool = False) -> CardFacts:
    """What the folder of a student tells, with what its run does, if it is one of a run and nobody has measured it since.

    Args:
        is_named: whether the title of `facts` was chosen; otherwise it is the run's.

    Raises:
        CheckpointError: the run's result is damaged.
    """
    run = folder.parent
    if facts.record is None or facts.record.by != BY or not (run / RESULT_FILE).is_file():
        return facts
    result = RecipeResult.load(run)
    found = run_facts(folder, facts.repo, result, facts.base or base_of(result), facts.record)
    told = ("gguf", "kept", "tags", "metadata", *(["title"] if is_named else []))
    return dataclasses.replace(found, **{name: getattr(facts, name) for name in told})


def places_of(settings: RecipeSettings) -> dict[str, str]:
    """The settings that name files or folders, with these in full: for `RecipeResult.places`."""
    named = {name: Path(getattr(settings, name)).expanduser() for name in _PLACES if getattr(settings, name)}
    return {name: os.path.abspath(place) for name, place in named.items() if place.exists()}


def base_of(result: RecipeResult) -> str | Path | None:
    """The model that a run began with: an id, or the folder that it was in."""
    return _given(result, "model") or _given(result, "teacher")


def _given(result: RecipeResult, name: str) -> str | Path | None:
    """What a setting names: an id, or a folder."""
    return Path(result.places[name]) if name in result.places else result.settings.get(name)


def command(result: RecipeResult, base: str | PathLike | None) -> str:
    """The command line of the run, with names that mean something elsewhere: of folders only the last part."""
    words = ["bitdistill", "run"]
    for name, value in {"model": base, **result.settings}.items():
        if name in ("plan", "push_to", "push_private") or value is None:
            continue
        values = value if isinstance(value, (list, tuple)) else [value]
        words += [f"--{name}", *(_public(result, name, each) for each in values)]
    return shlex.join(words)


def _public(result: RecipeResult, name: str, value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value)
    if name == "model":
        return base_model_id(_given(result, name) if name in result.places else value) or Path(text).name
    is_place = name in result.places or name == "output_dir" or os.path.isabs(text) or os.path.exists(text)
    return Path(text).name if is_place else text


def _data(result: RecipeResult) -> str:
    """The line on the examples, without the folder that they lie in."""
    given = result.settings.get("dataset")
    return result.data.replace(given, _public(result, "dataset", given)) if given else result.data


def _numbers(result: RecipeResult) -> str | None:
    """A table of the numbers that the run used."""
    numbers, settings = result.numbers, result.settings
    unused = [
        *(_OF_CORPUS if "corpus" not in settings else ()),
        *(_OF_START if not numbers.get("window_steps") else ()),
        *(_OF_TEACHER if "teacher" not in result.curves else ()),
        *(_OF_DISTILLATION if not numbers.get("distill_examples") else ()),
        *(_OF_COMPARISON if not settings.get("compare") else ()),
    ]
    rows = [[name, _text(value)] for name, value in numbers.items() if not name.startswith(tuple(unused))]
    return markdown_table(["setting", "value"], [*rows, ["seed", str(settings.get("seed", 0))]]) if rows else None


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def _stages(result: RecipeResult) -> list[list[str]]:
    planned = {each["title"]: each for each in result.plan.get("stages", [])}
    rows = []
    for title, seconds in result.seconds.items():
        steps, tokens = (planned.get(title, {}).get(name, 0) for name in ("steps", "tokens"))
        rows.append([title, f"{steps:,}" if steps else "", f"{tokens:,}" if tokens else "", duration(seconds)])
    return rows


def speed_table(rates: Mapping[str, float | None], machine: Mapping[str, Any]) -> str | None:
    """Tokens a second of what was timed as in [`tokens_per_second`], with the processor and its threads."""
    rows = [[name, f"{rate:,.0f}"] for name, rate in rates.items() if rate]
    if not rows:
        return None
    where = f"{machine.get('processor', 'this CPU')}, {machine.get('threads')} threads"
    return "\n\n".join([f"Writing 32 tokens after 32, on {where}.", markdown_table(["", "tokens/s"], rows)])


def _packed(result: RecipeResult) -> Row:
    return next(row for row in result.table if row.name == PACKED_ROW)


def record_of(result: RecipeResult, examples: Examples, rows: str) -> Record:
    """The packed student's scores.

    Args:
        rows: fingerprint of the evaluation split's.
    """
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
    return Record(scores, examples.how, rows, BY, row.name)
