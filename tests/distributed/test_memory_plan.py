"""The planned memory of a training beside what a real one takes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import check_memory_plan as check
import pytest
from torch.profiler import ProfilerActivity, profile


BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_one_process(tmp_path):
    """In this process: the plan of two steps, and the two steps."""
    case = check.Case(check.ENGINES[0])
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        kept = check.train(case, str(tmp_path))
    profiled.export_chrome_trace(str(tmp_path / "trace.json"))
    measured, between = check.peak_of(json.loads((tmp_path / "trace.json").read_text())["traceEvents"])
    assert kept[0]._passes.refusal is None
    plan = check.planned(case, 1)
    assert abs(plan["peak"] / measured - 1) < 0.03
    # Latents, optimizer, teacher.
    assert between == pytest.approx(plan["moments"]["optimizer"] - 4 * kept[0].model.num_parameters(), rel=0.03)
    # A plan that forgot the activations would be told.
    wrong = check.planned(check.Case(check.ENGINES[0], checkpointing=True), 1)
    assert abs(wrong["peak"] / measured - 1) > check.TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["DDP", "FSDP2", "ZeRO-1", "ZeRO-2", "ZeRO-3"])
def test_two_processes(engine, tmp_path):
    if engine.startswith("ZeRO"):
        pytest.importorskip("deepspeed")
    result = tmp_path / "result.json"
    command = [sys.executable, str(BENCHMARKS / "check_memory_plan.py"), "--engines", engine, "--processes", "2"]
    short = ["--accumulation", "1", "--tied", "0", "--output", str(result)]
    # (Where gloo's threads free what was sent, and nothing is counted twice, the plan is nearer than its aim.)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([*command, *short], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    for row in json.loads(result.read_text())["trainings"]:
        assert abs(row["difference"]) < 0.07, row
