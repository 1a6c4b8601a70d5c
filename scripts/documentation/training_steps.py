"""The record of training steps: time and memory beside full precision, and beside a naive distillation."""

from __future__ import annotations

from typing import Any

from .shown import Shown, load, machine


FILE = "training_step.json"


def _measured(rows: list[dict[str, Any]], what: str) -> str:
    machines = sorted({machine(row["machine"]) for row in rows})
    loads = [row["load"]["other_busy_cpus"] for row in rows if row["load"]["other_busy_cpus"] is not None]
    busy = f"; others kept {max(loads):.1f} CPUs busy at most" if loads else ""
    return f"{' and '.join(machines)}; {what}{busy}"


def _gb(kind: dict[str, Any]) -> str | None:
    return None if kind.get("peak_gb") is None else f"{kind['peak_gb']:.2f} GB"


def training_step() -> Shown:
    rows = [row for row in load(FILE)["rows"] if row["what"] == "student"]
    students = {"student": "a scale a matrix", "student, scales of rows": "a scale a row"}
    shown = []
    for row in sorted(rows, key=lambda row: (row["compiled"], row["dtype"] != "float32")):
        whole = row["kinds"]["full precision"]
        for kind, scales in students.items():
            student = row["kinds"][kind]
            of_forward, of_step = (
                student[f"{part}_seconds"]["median"] / whole[f"{part}_seconds"]["median"]
                for part in ("forward", "step")
            )
            shown.append(
                [
                    f"{row['dtype']}, {'compiled' if row['compiled'] else 'eager'}, {scales}",
                    f"{whole['step_seconds']['median']:.2f} s",
                    f"{student['step_seconds']['median']:.2f} s",
                    f"{of_step:.2f}",
                    f"{of_forward:.2f}",
                ]
            )
    batch, layers = rows[0]["batch"], rows[0]["layers"]
    return Shown(
        ["", "full precision", "student", "student / full precision", "forward alone"],
        shown,
        [FILE],
        _measured(
            rows,
            f"the shape of a SmolLM2-135M ({layers} layers), random weights, {batch[0]} x {batch[1]} tokens, forward and backward, "
            f"medians of {rows[0]['rounds']} rounds in turns",
        ),
    )


def distillation_step() -> Shown:
    rows = [row for row in load(FILE)["rows"] if row["what"] == "distillation"]
    shown = []
    for row in sorted(rows, key=lambda row: (row["vocabulary"], row["dtype"] != "float32")):
        naive, ours = row["kinds"]["naive"], row["kinds"]["ours"]
        shown.append(
            [
                f"{row['vocabulary']:,} tokens, {row['dtype']}",
                _gb(naive),
                _gb(ours),
                f"{naive['step_seconds']['median']:.1f} s",
                f"{ours['step_seconds']['median']:.1f} s",
            ]
        )
    batch, layers = rows[0]["batch"], rows[0]["layers"]
    return Shown(
        ["vocabulary", "memory, naive", "memory, ours", "time, naive", "time, ours"],
        shown,
        [FILE],
        _measured(
            rows,
            f"student and teacher in the shape of a SmolLM2-135M with {layers} layers, {batch[0]} x {batch[1]} tokens, checkpointing; memory "
            "above the models and the student's gradients",
        ),
    )
