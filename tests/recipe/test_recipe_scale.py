"""What a plan for machines that are not at hand reads of a run's data and folder."""

import json

import pytest

from hf_bitdistill.cli.main import main


def test_a_dataset_tells_lengths(settings, tmp_path, capsys):
    """Real examples instead of the longest that may be; the rate of an earlier probe."""
    stage = tmp_path / "out" / "stages" / "probe-1"
    stage.mkdir(parents=True)
    probe = {"settings": {"batch_size": 16, "processes": [2, "DDP"]}, "measured": {"distill_step": 0.5}}
    machine = {"machine": {"device": "cpu", "processor": "a CPU"}}
    (stage / "result.json").write_text(json.dumps({**probe, **machine}))
    place, few = (
        tmp_path / "plan.json",
        ["--batch_size", "2", "--attention_loss_weight", "0", "--hidden_loss_weight", "0"],
    )
    data = ["--dataset", settings.dataset, "--text_columns", "opinion", "--label_column", "verdict"]
    memory = ["--gpus", "2", "--gpu_memory", "80", "--output_dir", settings.output_dir, "--output_file", str(place)]
    assert main(["run", "--plan", "--model", settings.model, *data, *memory, *few]) == 0
    plan = json.loads(place.read_text())
    assert plan["data"]["is_measured"] and 0 < plan["data"]["labels"] < plan["data"]["length"] < 60
    assert plan["tokens_per_second"] == pytest.approx(8 * plan["data"]["mean_length"] / 0.5)
    assert "measured by --plan on a CPU" in capsys.readouterr().out
