"""A recorded result as a page shows it: a table, and a picture of the same numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from hf_bitdistill.pages.tables import markdown_table

from .charts import Chart


ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class Shown:
    """One recorded result.

    Args:
        header, rows: the table; `None` in a cell: not run.
        files: of `benchmarks/results`, that the numbers are read from.
        measured: machine and date.
        chart: the picture; its name is that of the result.
        alt: what the picture shows.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str | None]]
    files: Sequence[str]
    measured: str
    chart: Chart | None = None
    alt: str = ""

    def markdown(self, picture: str | None, results: str) -> str:
        """Picture, table, and where they come from.

        Args:
            picture: address of the picture, seen from the page.
            results: address of `benchmarks/results`, seen from the page.
        """
        parts = [f"![{self.alt}]({picture})"] if picture and self.chart else []
        parts.append(markdown_table(self.header, [["not run" if c is None else c for c in row] for row in self.rows]))
        sources = ", ".join(f"[`{name}`]({results}/{name})" for name in self.files)
        parts.append(f"*{self.measured}. {sources}*")
        return "\n\n".join(parts)


@cache
def load(name: str) -> Any:
    """A file of `benchmarks/results`, by its name there."""
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def exists(name: str) -> bool:
    return (RESULTS / name).is_file()


def machine(values: Mapping[str, Any]) -> str:
    """`2 threads of an AMD EPYC, 2026-11-27`, of what a result says about its machine."""
    name, threads = processor(values), values["threads"]
    return f"{threads} thread{'s' if threads != 1 else ''} of {_with_article(name)}, {values['date'][:10]}"


def processor(values: Mapping[str, Any]) -> str:
    """Its name, of what a result says about its machine."""
    return str(values.get("processor") or values.get("cpu")).replace("(R)", "").replace(" Processor", "")


def _with_article(name: str) -> str:
    return f"{'an' if name[0] in 'AI' else 'a'} {name}"


# ---- The files of benchmarks/accuracy -------------------------------------------------------------------------------


def scores(name: str, arm: str, metric: str = "accuracy") -> list[float]:
    """Of one arm, in per cent, in the order of the seeds."""
    rows = [row for row in load(f"accuracy/{name}.json")["rows"] if row["arm"] == arm]
    return [100 * row["evaluation"][metric] for row in sorted(rows, key=lambda row: row["seed"])]


def standard_error(name: str, arm: str) -> float:
    """Of the mean of an arm's accuracies, in points: of independent examples."""
    rows = [row for row in load(f"accuracy/{name}.json")["rows"] if row["arm"] == arm]
    p = mean(row["evaluation"]["accuracy"] for row in rows)
    # (Seeds are measured on the same examples, so that more of them do not make it smaller.)
    return 100 * math.sqrt(p * (1 - p) / rows[0]["evaluation"]["n"])


def spread(values: Sequence[float], digits: int = 2) -> str:
    """`38.81 ± 0.19`: mean and standard deviation."""
    return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def nats(name: str, arm: str, budget: int | None, text: str = "teacher_samples") -> list[float]:
    """Nats a token of one arm at one budget, in the order of the seeds."""
    rows = [row for row in load(f"accuracy/{name}.json")["rows"] if row["arm"] == arm and row["budget"] == budget]
    return [row["perplexity"][text]["nll_per_token"] for row in sorted(rows, key=lambda row: row["seed"])]


def arms_machines(name: str, arms: Container[str] | None = None) -> tuple[list[str], list[int], str]:
    """Processors, numbers of threads and dates of some arms, or all: a file keeps the rows of other days and machines."""
    rows = [row for row in load(f"accuracy/{name}.json")["rows"] if arms is None or row["arm"] in arms]
    machines = [stage["machine"] for row in rows for stage in row["stages"]]
    first, last = (pick(each["date"][:10] for each in machines) for pick in (min, max))
    threads = sorted({each["threads"] for each in machines})
    return (
        sorted(set(map(processor, machines))),
        threads,
        first if first == last else f"{first} to {last[8:] if first[:7] == last[:7] else last}",
    )


def accuracy_machine(name: str, arms: Container[str] | None = None) -> str:
    """`2 threads of an AMD EPYC and an Intel Xeon, 2026-11-25 to 2026-11-27`."""
    processors, threads, dates = arms_machines(name, arms)
    number = " or ".join(map(str, threads))
    return f"{number} thread{'s' if number != '1' else ''} of {' and '.join(map(_with_article, processors))}, {dates}"
