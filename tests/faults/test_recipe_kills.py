"""A recipe that is killed at any moment: the same command ends with the scores and weights of the run that nobody disturbed."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file

from faults.killing import kill_points, number_of_operations, run_and_kill
from hf_bitdistill.cli.main import main
from tiny_recipe import flags, make_csv, make_model, own_settings, without_figures


if not hasattr(os, "fork"):
    pytest.skip("needs fork", allow_module_level=True)

slow = (pytest.mark.slow, pytest.mark.timeout(7200))


@pytest.fixture
def command(tmp_path, tiny_llama_config, tiny_tokenizer, monkeypatch):
    """`command(output folder)`: the arguments of a short run, whose every step keeps a checkpoint."""
    without_figures(monkeypatch.setattr)
    model = make_model(tmp_path / "model", tiny_llama_config, tiny_tokenizer)
    data = make_csv(tmp_path / "opinions.csv")
    more = {"teacher_examples": 64, "distill_examples": 32, "window_steps": 2, "checkpoint_minutes": 1e-6}
    more |= {"check_teacher": False, "keep_only_better": False}
    return lambda output: ["run", *flags(**own_settings(model, data, output, **more))]


def scores(output):
    return [row["score"] for row in json.loads((output / "result.json").read_text())["table"]]


@pytest.mark.parametrize("kills", [1, pytest.param(30, id="many", marks=slow)])
def test_the_same_command_ends_with_the_same_scores(kills, command, tmp_path):
    expected, output = tmp_path / "expected", tmp_path / "output"
    operations = number_of_operations(lambda: main(command(expected)), expected)
    weights = load_file(expected / "packed" / "model.safetensors")
    interrupted = 0
    # (The last operation removes what is in the way of nobody; half of them are trainings.)
    for point in kill_points(operations, kills + 1, seed=4)[:-1]:
        shutil.rmtree(output, ignore_errors=True)
        outcome = run_and_kill(lambda: main(command(output)), output, at_operation=point)
        assert outcome.killed, outcome.output
        again = run_and_kill(lambda: main(command(output)), output)
        assert again.exit_status == 0, (point, again.output)
        assert scores(output) == scores(expected), point
        found = load_file(output / "packed" / "model.safetensors")
        assert found.keys() == weights.keys() and all(torch.equal(found[name], weights[name]) for name in weights)
        # The stage in which it died knows of it, and nothing of the attempt is left.
        results = [json.loads(file.read_text()) for file in output.glob("stages/*/result.json")]
        interrupted += sum(result.get("interruptions", 0) for result in results)
        assert not list(output.glob("stages/*/taken.json"))
    assert 1 <= interrupted <= kills
