"""The check of packed layers on a GPU runs its checks on any device, and finds a wrong result."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from hf_bitdistill.nn import ternary_linear


SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "check_cuda.py"


def check(monkeypatch, output):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--device", "cpu", "--only_checks", "--output", str(output)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    return json.loads(output.read_text())


def test_checks(tmp_path, monkeypatch):
    result = check(monkeypatch, tmp_path / "result.json")
    assert len(result["deviations"]) == 10 and result["layers"] == []
    assert max(row["result"] for row in result["deviations"]) == 0.0


def test_a_wrong_result_is_found(tmp_path, monkeypatch):
    right, calls = ternary_linear.packed_linear, []

    def every_second_is_wrong(*args):
        calls.append(None)
        return right(*args) * (1.1 if len(calls) % 2 == 0 else 1.0)

    monkeypatch.setattr(ternary_linear, "packed_linear", every_second_is_wrong)
    with pytest.raises(SystemExit, match="wrong on cpu"):
        check(monkeypatch, tmp_path / "result.json")
