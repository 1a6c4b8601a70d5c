"""The two tables and the picture of README.md."""

from __future__ import annotations

from statistics import mean

from .accuracy import MNLI, SST2, TASK
from .recipe_runs import (
    QUICKSTART,
    STUDENT,
    TEACHER,
    WITHOUT,
    quality,
    recipe_record,
    recipe_row,
    score_text,
    time_text,
)
from .shown import Shown, accuracy_machine, arms_machines, exists, load, machine, processor, scores
from .speed import students
from .whole_models import DECODE, IK, OURS, best_isa, row_of


def results() -> Shown:
    """Five rows: teacher, ternary student, and ternary without the recipe."""
    rows = []

    def run(file: str, label: str) -> None:
        values = load(file)
        without = next((row for row in values["table"] if row["name"] == WITHOUT), None)
        teacher, student = (recipe_row(file, name) for name in (TEACHER, STUDENT))
        rows.append(
            [f"{label}, {time_text(values)}", score_text(teacher), score_text(student), score_text(without) if without else None,
             f"{processor(values['machine'])}, {values['machine']['date']}"]
        )  # fmt: skip

    def arms(label: str, name: str, student: str, without: str | None) -> None:
        cells = [f"{mean(scores(name, arm)):.1f}" if arm else None for arm in ("fp_sft", student, without)]
        processors, _, dates = arms_machines(name, list(filter(None, ("fp_sft", student, without))))
        rows.append([label, *cells, f"{' and '.join(processors)}, {dates}"])

    run(QUICKSTART, "docstrings, 1.7 M parameters: `make demo`")
    run(recipe_record("quick"), "SST-2, SmolLM2-135M: `run --effort quick`")
    if exists(recipe_record("standard")):
        run(recipe_record("standard"), "SST-2, SmolLM2-135M: `run`")
    else:
        arms("SST-2, SmolLM2-135M, 19,200 examples: BitDistill", TASK, "teacher_warm_start_kept", None)
    arms(
        "SST-2, SmolLM2-135M, 6,400 examples, two seeds: warm start alone",
        SST2,
        "teacher_warm_start_kept_longer_alone",
        "bitnet_sft",
    )
    if exists(recipe_record("standard", "mnli")):
        run(recipe_record("standard", "mnli"), "MNLI, SmolLM2-135M: `run`")
    else:
        arms("MNLI, SmolLM2-135M, 6,400 examples: BitDistill", MNLI, "teacher_warm_start_kept_longer", "bitnet_sft")
    return Shown(
        ["% right", "teacher, full precision", "ternary student", "ternary, no recipe", "two threads of"],
        rows,
        [QUICKSTART, recipe_record("quick"), f"accuracy/{SST2}.json", f"accuracy/{MNLI}.json"],
        accuracy_machine(SST2),
        quality(),
        "Accuracy on SST-2 against size on disk and against tokens a second: teacher and ternary student",
    )


def speed() -> Shown:
    """Four rows: the native decoder, and what else was measured in the same run."""
    rows = []
    for shape, label in (("0.6B", "0.6 B"), ("2B4T", "2.4 B (BitNet 2B4T)")):
        ours = row_of(DECODE, shape=shape, system=OURS.format(8), isa=best_isa(), threads=2)
        theirs = row_of(DECODE, shape=shape, system=IK.format(8), threads=2)
        rows.append(
            [label, *(f"{row['decode_tps']:.0f} / {row['prefill_tps']:.0f}" for row in (ours, theirs)), _machine(ours)]
        )
        rows[-1][2] = f"ik_llama.cpp: {rows[-1][2]}"
    (mixture,) = load("decode_mixture.json")
    rows.append(
        [
            "mixture of experts, 30B-A3B",
            f"{mixture['decode_tps']:.0f} / {mixture['prefill_tps']:.0f}",
            None,
            _machine(mixture),
        ]
    )
    label, native, float32 = students()[0]
    cells = [
        f"{each['decode_tokens_per_second']:,.0f} / {each['prefill_tokens_per_second']:,.0f}"
        for each in (native, float32)
    ]
    environment = load("benchmark_smollm2_sst2_ternary.json")["environment"]
    rows.append(
        [label, cells[0], f"transformers, float32: {cells[1]}", f"{environment['processor']}, {environment['date']}"]
    )
    return Shown(
        ["tokens a second, decode / prompt", "hf-bitdistill", "in the same run", "two threads of"],
        rows,
        [DECODE, "decode_mixture.json", "benchmark_smollm2_sst2_ternary.json"],
        machine(environment),
    )  # fmt: skip


def _machine(row: dict) -> str:
    return f"{processor(row)}, {row['date'][:10]}"
