"""A training that is killed at any moment: the same command ends with the weights of the run that nobody disturbed."""

import json
import os
import random
import shutil
import time

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from faults.killing import kill_points, number_of_operations, run_and_kill
from hf_bitdistill.cli.main import main


if not hasattr(os, "fork"):
    pytest.skip("needs fork", allow_module_level=True)

# Kills at file operations, and at random moments.
FEW = {"pretrain": (2, 1), "distill": (1, 0), "warm-start": (1, 0)}
MANY = {"pretrain": (30, 10), "distill": (25, 8), "warm-start": (20, 7)}

slow = (pytest.mark.slow, pytest.mark.timeout(7200))


def assert_same_weights(folder, expected):
    one, other = (load_file(path / "model.safetensors") for path in (folder, expected))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in other)


def assert_no_half_model(folder, expected):
    """What loads is the finished model."""
    try:
        model = AutoModelForCausalLM.from_pretrained(folder)
    except (OSError, ValueError):
        return
    whole = AutoModelForCausalLM.from_pretrained(expected).state_dict()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in model.state_dict().items())


def assert_complete(folder, expected):
    """Every file of the undisturbed run is there, whole, and nothing else."""
    names = [sorted(entry.name for entry in path.iterdir()) for path in (folder, expected)]
    assert names[0] == names[1]
    for name in names[0]:
        if name.endswith(".json"):
            json.loads((folder / name).read_text())
        assert (folder / name).is_dir() or (folder / name).stat().st_size
    AutoTokenizer.from_pretrained(folder)
    if (folder / "trainer_state.json").exists():
        assert json.loads((folder / "trainer_state.json").read_text())["global_step"] == 3


@pytest.mark.parametrize(
    "name, at_operations, at_moments",
    [
        *(pytest.param(name, *kills, id=name) for name, kills in FEW.items()),
        *(pytest.param(name, *kills, id=f"{name}, many", marks=slow) for name, kills in MANY.items()),
    ],
)
def test_the_same_command_ends_with_the_same_weights(name, at_operations, at_moments, commands, tmp_path):
    expected, output = tmp_path / "expected", tmp_path / "output"
    started = time.monotonic()
    operations = number_of_operations(lambda: main(commands(name, expected)), expected)
    seconds = time.monotonic() - started
    moments = random.Random(1)
    disturbances = [{"at_operation": point} for point in kill_points(operations, at_operations, seed=2)]
    disturbances += [{"after_seconds": moments.uniform(0.3, 1.0) * seconds} for _ in range(at_moments)]
    for disturbance in disturbances:
        shutil.rmtree(output, ignore_errors=True)
        outcome = run_and_kill(lambda: main(commands(name, output)), output, **disturbance)
        assert outcome.killed or "after_seconds" in disturbance, (disturbance, outcome.output)
        if output.exists():
            assert_no_half_model(output, expected)
        again = run_and_kill(lambda: main(commands(name, output)), output)
        assert again.exit_status == 0, (disturbance, again.output)
        assert_same_weights(output, expected)
        assert_complete(output, expected)


@pytest.mark.parametrize("kills", [2, pytest.param(None, id="every operation", marks=slow)])
def test_an_older_model_is_the_old_one_or_the_new_one(kills, commands, tmp_path):
    """A warm start over one with another seed and another granularity."""
    old, new, output = (tmp_path / name for name in ("old", "new", "output"))
    assert main(commands("warm-start", old, weight_granularity="row")) == 0
    shutil.copytree(old, new)
    operations = number_of_operations(lambda: main(commands("warm-start", new)), new)
    states = [AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (old, new)]
    for point in kill_points(operations, kills or operations, seed=3):
        shutil.rmtree(output, ignore_errors=True)
        shutil.copytree(old, output)
        assert run_and_kill(lambda: main(commands("warm-start", output)), output, at_operation=point).killed
        state = AutoModelForCausalLM.from_pretrained(output).state_dict()
        assert any(all(torch.equal(state[name], other[name]) for name in other) for other in states)
