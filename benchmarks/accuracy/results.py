"""The result file of a benchmark: its rows, those of earlier runs with the same settings included."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from settings import BenchmarkSettings, build_settings

from hf_bitdistill.machine.environment import describe_environment
from hf_bitdistill.recipe.store import write_json


FULL_PRECISION = ("full precision", "fp_sft")
"""Rows that are no arm of the configuration."""


class Results:
    """Rows of arms, budgets and seeds, written as JSON whenever one is added.

    A row that the file has already stays until it is made again, if it was made with the settings of now: so a run of some arms
    or seeds adds to what other runs, or another machine, have measured. Every stage of a row says when and on what it was run.
    """

    def __init__(self, file: Path, settings: BenchmarkSettings, metric: str | None, note: str | None):
        self.file, self.settings, self.metric, self.note = file, settings, metric, note
        self.rows: list[dict[str, Any]] = self._earlier() if file.is_file() else []

    def _earlier(self) -> list[dict[str, Any]]:
        content = json.loads(self.file.read_text(encoding="utf-8"))
        before, now = build_settings(content["settings"], str(self.file)), self.settings
        if _shared(before) != _shared(now):
            return []
        untitled_before, untitled_now = _untitled(before), _untitled(now)
        rows = []
        for row in content["rows"]:
            arm, budget = row["arm"], row["budget"]
            if arm not in FULL_PRECISION:
                if arm not in now.arms or untitled_before[arm] != untitled_now[arm]:
                    continue
                if budget is not None and budget not in now.budgets:
                    continue
                row["title"] = now.arms[arm].title
            rows.append({"note": content["note"], **row})
        return rows

    def add(self, row: dict[str, Any]) -> None:
        """Add a row, in the place of an earlier one of the same arm, budget and seed, and write the file."""
        key = ("arm", "budget", "seed")
        others = [other for other in self.rows if any(other[name] != row[name] for name in key)]
        self.rows = sorted([*others, {**row, "note": self.note}], key=self._place)
        notes = dict.fromkeys(row["note"] for row in self.rows if row["note"])
        result = {
            "settings": dataclasses.asdict(self.settings),
            "metric": self.metric,
            "machine": describe_environment(),
            "note": "; ".join(notes) or None,
            "rows": self.rows,
        }
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.file, result)

    def _place(self, row: dict[str, Any]) -> tuple[int, int, int]:
        """By budget (full precision has none), seed and the order of the arms."""
        return row["budget"] or 0, row["seed"], [*FULL_PRECISION, *self.settings.arms].index(row["arm"])


def _shared(settings: BenchmarkSettings) -> BenchmarkSettings:
    """What decides the numbers of every row."""
    return dataclasses.replace(settings, title="", seeds=(), budgets=(), arms={})


def _untitled(settings: BenchmarkSettings) -> dict[str, Any]:
    return {name: dataclasses.replace(arm, title="") for name, arm in settings.arms.items()}
