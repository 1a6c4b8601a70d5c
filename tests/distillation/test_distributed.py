"""Two processes (DistributedDataParallel, gloo, CPU) against one: the same gradients, losses and evaluation."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distributed_run import one_step


SCRIPT = Path(__file__).with_name("distributed_run.py")


def launch(command, attempts=3, seconds=90):
    """Run a launcher and its workers. Joining processes on a busy machine can hang for good (seen once in several runs), so
    a run that takes far longer than its usual 15 seconds is ended, workers included, and started again."""
    for _ in range(attempts):
        process = subprocess.Popen(
            command,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            _, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            for line in subprocess.run(["pgrep", "-f", SCRIPT.name], capture_output=True, text=True).stdout.split():
                os.kill(int(line), signal.SIGKILL)  # workers have sessions of their own
            process.kill()
            process.communicate()
            continue
        assert process.returncode == 0, errors[-3000:]
        return
    raise AssertionError(f"{attempts} attempts took longer than {seconds} s each")


def test_two_processes_give_the_gradients_of_one(tmp_path):
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("needs torch.distributed with gloo")
    output = tmp_path / "two.pt"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    launch([*launcher, str(SCRIPT), str(output)])
    one, two = one_step(), torch.load(output)
    assert one["gradients"].keys() == two["gradients"].keys()
    for name, grad in one["gradients"].items():
        torch.testing.assert_close(two["gradients"][name], grad, rtol=1e-4, atol=1e-5)
    for key in ("loss", "loss_ce", "loss_logits", "loss_attention"):
        assert two["log"][key] == pytest.approx(one["log"][key], rel=1e-4)
    assert two["metrics"].keys() == one["metrics"].keys()
    for key in ("eval_loss", "eval_loss_ce", "eval_loss_logits", "eval_loss_attention"):
        assert one["metrics"][key] > 0
        assert two["metrics"][key] == pytest.approx(one["metrics"][key], rel=1e-4)
