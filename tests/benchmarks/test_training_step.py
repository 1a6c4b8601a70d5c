"""The benchmark of training steps, on a tiny model."""

import json
import runpy
import sys
from pathlib import Path


SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "bench_training_step.py"


def test_bench_training_step(tmp_path, monkeypatch):
    output = tmp_path / "result.json"
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--quick", "--threads", "1", "--output", str(output)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    student, distillation = json.loads(output.read_text())["rows"]
    assert list(student["kinds"]) == ["full precision", "student"]
    assert list(distillation["kinds"]) == ["naive", "whole logits", "ours"]
    for row, parts in ((student, ("forward", "step")), (distillation, ("step",))):
        for values in row["kinds"].values():
            assert all(values[f"{part}_seconds"]["least"] > 0 for part in parts) and "peak_gb" in values
