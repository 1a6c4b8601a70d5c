"""A place to write to, and room in it."""

import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hf_bitdistill.files import disk_room
from hf_bitdistill.training import DistillationConfig, check_training_room
from hf_bitdistill.training.reliability.footprint import optimizer_bytes


def test_what_can_be_written_is_left_as_it_is(tmp_path):
    disk_room.check_writable(tmp_path / "a" / "b")
    disk_room.check_writable(tmp_path / "a" / "file.json", is_file=True)
    disk_room.check_writable("/dev/null", is_file=True)
    (tmp_path / "there").write_text("kept")
    disk_room.check_writable(tmp_path / "there", is_file=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["there"]
    assert (tmp_path / "there").read_text() == "kept"


def test_what_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match=r"file/x: .*file is a file"):
        disk_room.check_writable(tmp_path / "file" / "x")
    with pytest.raises(IsADirectoryError, match="it is a folder"):
        disk_room.check_writable(tmp_path, is_file=True)

    def refuse(**options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(disk_room.tempfile, "TemporaryFile", refuse)
    with pytest.raises(OSError, match=re.escape(f"cannot write to {tmp_path / 'x'}: Read-only file system")):
        disk_room.check_writable(tmp_path / "x")


@pytest.fixture
def free(monkeypatch):
    """Sets the free space, in bytes."""
    space = SimpleNamespace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: space)
    return space


def test_the_room_for_a_training(tmp_path, free, caplog):
    model = nn.Linear(1000, 10, bias=False)  # 40 kB, and 80 kB of Adam's states
    assert disk_room.parameter_bytes(model) == 40_000 and optimizer_bytes(model, "adamw_torch") == 80_000
    assert optimizer_bytes(model, "adamw_bnb_8bit") == 20_000 and optimizer_bytes(model, "sgd") == 0
    assert optimizer_bytes(model.to(torch.bfloat16), "adamw_torch_fused") == 40_000
    model = model.float()

    def check(**options):
        check_training_room(model, DistillationConfig(output_dir=str(tmp_path / "run"), use_cpu=True, **options))

    for options, need in (
        ({"save_strategy": "no"}, 40_000),
        ({"save_strategy": "steps", "save_steps": 10, "max_steps": 10}, 160_000),
        ({"save_strategy": "steps", "save_steps": 10, "max_steps": 100, "save_total_limit": 2}, 400_000),
        ({"save_strategy": "steps", "save_steps": 0.5, "save_total_limit": 9}, 280_000),
        ({"save_strategy": "epoch", "num_train_epochs": 3, "save_only_model": True, "save_total_limit": 3}, 160_000),
    ):
        free.free = need
        check(**options)
        free.free = need - 1
        with pytest.raises(OSError, match=r"run has .* of free space and about .* will be needed \(.*model") as error:
            check(**options)
        assert "\n" not in str(error.value)
    # Checkpoints that are there already have their room.
    for step in (10, 20):
        (tmp_path / "run" / f"checkpoint-{step}").mkdir(parents=True)
    free.free = 160_000
    check(save_strategy="steps", save_steps=10, max_steps=100, save_total_limit=2)
    check(save_strategy="steps", save_steps=10, max_steps=100)
    assert "no room for all 10 checkpoints" in caplog.text
