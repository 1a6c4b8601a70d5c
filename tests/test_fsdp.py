"""FSDP2 on two processes (gloo, CPU): an online student in shards. The checks are in `fsdp_run.py`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import warm


if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("needs torch.distributed with gloo", allow_module_level=True)

from fsdp_run import CHECKS


SCRIPT = Path(__file__).with_name("fsdp_run.py")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What came of every check in either process, from one run of the two; "not reached" where it ended before."""
    folder = tmp_path_factory.mktemp("fsdp")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    commands = [([sys.executable, str(SCRIPT), str(rank), str(folder)], environment) for rank in range(2)]
    try:
        output = [done.stdout + done.stderr for done in warm.run_side_by_side(commands, timeout=200)]
    except subprocess.TimeoutExpired as late:
        output = [f"{late}\n{late.output}\n{late.stderr}"] * 2  # the missing results say so
    found = []
    for rank in range(2):
        file = folder / f"results-{rank}.json"
        found.append(
            dict.fromkeys(CHECKS, f"not reached\n{output[rank][-2000:]}")
            | (json.loads(file.read_text()) if file.exists() else {})
        )
    return found


@pytest.mark.parametrize("check", CHECKS)
def test_two_processes(check, results):
    for rank, result in enumerate(results):
        assert result[check] == "passed", f"process {rank}: {result[check]}"
