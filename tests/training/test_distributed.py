"""Two processes (DistributedDataParallel, gloo, CPU) against one: the same gradients, losses and evaluation; and their common
checkpoints."""

import os
import sys
from pathlib import Path

import pytest
import torch
from distributed_run import JSD, one_step

import warm


SCRIPT = Path(__file__).with_name("distributed_run.py")


def test_two_processes_give_the_gradients_of_one(tmp_path):
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("needs torch.distributed with gloo")
    output = tmp_path / "two.pt"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    warm.launch([sys.executable, str(SCRIPT), str(output)], 2, environment)
    one, two = one_step(), torch.load(output)
    assert one["gradients"].keys() == two["gradients"].keys()
    for name, grad in one["gradients"].items():
        torch.testing.assert_close(two["gradients"][name], grad, rtol=1e-4, atol=1e-5)
    for key in ("loss", "loss_ce", "loss_logits", "loss_attention", "loss_hidden"):
        assert two["log"][key] == pytest.approx(one["log"][key], rel=1e-4)
    assert two["metrics"].keys() == one["metrics"].keys()
    for key in ("eval_loss", "eval_loss_ce", "eval_loss_logits", "eval_loss_attention", "eval_loss_hidden"):
        assert one["metrics"][key] > 0
        assert two["metrics"][key] == pytest.approx(one["metrics"][key], rel=1e-4)
    one, two = one_step(**JSD), two["jsd"]
    for name, grad in one["gradients"].items():
        torch.testing.assert_close(two["gradients"][name], grad, rtol=1e-4, atol=1e-5)
    assert two["log"]["loss_logits"] == pytest.approx(one["log"]["loss_logits"], rel=1e-4)
    found = [torch.load(f"{output}.{rank}") for rank in range(2)]
    for rank, each in enumerate(found):
        assert each["resumed"] == "checkpoint-1" and each["same"], each
        assert "no such folder; the newest whole checkpoint is" in each["explicit"]
        assert f"FloatingPointError: step 3 (process {rank})" in each["teacher"] and "checkpoint-2" in each["teacher"]
        assert "not finite" in each["student"]
    assert "teacher logits" in found[1]["teacher"]
    assert {"checkpoint-1", "checkpoint-2", "model.safetensors"} <= set(found[0]["files"])
    assert not [name for name in found[0]["files"] if name.startswith("_")]
