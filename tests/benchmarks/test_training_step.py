"""The benchmark of training steps, on a tiny model."""

import json
import runpy
import sys
from pathlib import Path


SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "bench_training_step.py"


def test_bench_training_step(tmp_path, monkeypatch):
    output = tmp_path / "result.json"
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    for what in ("student", "distillation", "student"):  # in parts; what was measured before is measured again
        options = ["--quick", "--threads", "1", "--what", what, "--output", str(output)]
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *options])
        runpy.run_path(str(SCRIPT), run_name="__main__")
    distillation, student = json.loads(output.read_text())["rows"]
    assert student["machine"]["date"] and "other_busy_cpus" in distillation["load"]
    assert list(student["kinds"]) == ["full precision", "student", "student, scales of rows"]
    assert list(distillation["kinds"]) == ["naive", "whole logits", "ours"]
    for row, parts in ((student, ("forward", "step")), (distillation, ("step",))):
        for values in row["kinds"].values():
            assert all(values[f"{part}_seconds"]["least"] > 0 for part in parts) and "peak_gb" in values
