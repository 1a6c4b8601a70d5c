"""What a run knows of its student for the card, and the record by which the student can be measured again."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from ..evaluation.score_record import Record
from ..hub.cards import CardFacts
from ..hub.cards.base_model_id import base_model_id
from ..modeling.sizes import bytes_by_kind
from ..pages.tables import markdown_table
from .examples import Examples
from .progress import duration
from .result import PACKED_ROW, RecipeResult, Row


#: Who measured, in the record of a run's student.
BY = "bitdistill run"


def run_facts(folder: Path, name: str, result: RecipeResult, base: str, record: Record) -> CardFacts:
    """For the card of the packed student in a folder that will be called `name`.

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
        teacher=result.settings.get("teacher"),
        distilled_by=f"`{BY}` of hf-bitdistill",
        record=record,
        date=result.machine.get("date"),
        data=_data(result),
        scores=markdown_table(header, rows),
        sentences=result.sentences(),
        sizes=bytes_by_kind(folder),
        speed=speed_table({row.name: row.tokens_per_second for row in result.table}, result.machine),
        command=command(result, base),
        stages=markdown_table(["stage", "steps", "tokens", "time"], _stages(result)),
        choices=result.choices or ["nothing"],
        kept=result.kept,
        machine=", ".join(f"{name} {value}" for name, value in result.machine.items()),
    )


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
