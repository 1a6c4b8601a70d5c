"""Which checkpoints are whole, which one is gone on from, which ones go."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_bitdistill.files.tensor_headers import CheckpointError
from hf_bitdistill.files.training_checkpoints import (
    MANIFEST,
    choose,
    contents,
    damage,
    difference,
    list_checkpoints,
    rotate,
)
from hf_bitdistill.training.publishing import PublishingTrainer


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run of three steps with a checkpoint after each, made once."""
    folder = tmp_path_factory.mktemp("saved")
    return folder / "run"


@pytest.fixture
def run(saved, make_model, make_trainer, lm_rows, tmp_path):
    """A copy of that run."""
    if not saved.exists():
        make_run(make_model, make_trainer, lm_rows, output_dir=str(saved)).train()
    shutil.copytree(saved, tmp_path / "run")
    return tmp_path / "run"


def make_run(make_model, make_trainer, lm_rows, **options):
    options = {
        "max_steps": 3,
        "lr_scheduler_type": "constant",
        "save_strategy": "steps",
        "save_steps": 1,
        "logging_steps": 1,
        **options,
    }
    return make_trainer(make_model(0), make_model(1), lm_rows, **options)


def legacy(run):
    """As an older version of this library, or `Trainer`, leaves it."""
    for folder in list_checkpoints(run):
        (folder / MANIFEST).unlink()


def halve(file):
    os.truncate(file, file.stat().st_size // 2)


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


FILES = ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]


def test_a_run_leaves_whole_checkpoints_and_nothing_else(run):
    assert sorted(entry.name for entry in run.iterdir()) == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    for folder in list_checkpoints(run):
        listed = json.loads((folder / MANIFEST).read_text())["files"]
        assert set(listed) == {entry.name for entry in folder.iterdir()} - {MANIFEST} > set(FILES)
        assert damage(folder) is None
    legacy(run)
    assert all(damage(folder) is None for folder in list_checkpoints(run))


@pytest.mark.parametrize("is_legacy", [False, True])
@pytest.mark.parametrize("harm", [os.unlink, halve, lambda file: os.truncate(file, 0)])
def test_the_file_that_is_missing_or_cut_is_named(run, harm, is_legacy):
    if is_legacy:
        legacy(run)
    folder = run / "checkpoint-3"
    for name in FILES:
        kept = (folder / name).read_bytes()
        harm(folder / name)
        assert damage(folder).startswith(f"{name} "), name
        assert choose(run).checkpoint == run / "checkpoint-2"
        (folder / name).write_bytes(kept)
        assert damage(folder) is None


def test_a_flipped_bit_is_found(run):
    for name in FILES:
        kept = (run / "checkpoint-3" / name).read_bytes()
        flip(run / "checkpoint-3" / name)
        assert name in damage(run / "checkpoint-3")
        (run / "checkpoint-3" / name).write_bytes(kept)
    legacy(run)
    flip(run / "checkpoint-3" / "optimizer.pt")  # torch's own checksums
    assert damage(run / "checkpoint-3") == "optimizer.pt is damaged"


def test_a_shard_that_is_missing_is_named(run):
    legacy(run)
    folder = run / "checkpoint-3"
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00002-of-00002.safetensors" in damage(folder)


@pytest.mark.parametrize("is_legacy", [False, True])
def test_the_newest_whole_checkpoint_is_gone_on_from(
    run, make_model, make_trainer, lm_rows, tmp_path, caplog, is_legacy
):
    whole = make_run(make_model, make_trainer, lm_rows, name="whole", save_strategy="no", max_steps=4)
    whole.train()
    if is_legacy:
        legacy(run)
    halve(run / "checkpoint-3" / "optimizer.pt")
    trainer = make_run(make_model, make_trainer, lm_rows, name="run", max_steps=4, save_steps=4)
    trainer.train(resume_from_checkpoint=True)
    assert re.search("checkpoint-3: optimizer.pt .*checkpoint-2", caplog.text)
    for one, other in zip(whole.model.parameters(), trainer.model.parameters(), strict=True):
        assert torch.equal(one, other)
    # The damaged one was written again.
    assert damage(run / "checkpoint-4") is None


def test_a_damaged_checkpoint_that_is_named_is_refused(run, make_model, make_trainer, lm_rows):
    trainer = make_run(make_model, make_trainer, lm_rows, name="run")
    (run / "checkpoint-3" / "scheduler.pt").unlink()
    with pytest.raises(CheckpointError, match=r"checkpoint-3 .*scheduler.pt is missing; .*checkpoint-2") as error:
        trainer.train(resume_from_checkpoint=str(run / "checkpoint-3"))
    assert "\n" not in str(error.value)
    with pytest.raises(CheckpointError, match=r"no such folder; the newest whole checkpoint is .*checkpoint-2"):
        trainer.train(resume_from_checkpoint=str(run / "checkpoint-9"))
    for folder in list_checkpoints(run):
        halve(folder / "trainer_state.json")
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        trainer.train(resume_from_checkpoint=True)


def test_weights_alone(run, make_model, make_trainer, lm_rows, tmp_path, caplog):
    make_run(make_model, make_trainer, lm_rows, name="weights", save_only_model=True, max_steps=2).train()
    folder = tmp_path / "weights" / "checkpoint-2"
    assert damage(folder) is None
    with pytest.raises(CheckpointError, match=r"without optimizer.pt"):
        make_run(make_model, make_trainer, lm_rows).train(resume_from_checkpoint=str(folder))
    make_run(make_model, make_trainer, lm_rows, save_only_model=True).train(resume_from_checkpoint=str(folder))
    assert "holds weights alone" in caplog.text


def test_an_optimizer_that_does_not_fit_is_one_line(run, make_model, make_trainer, lm_rows):
    state = torch.load(run / "checkpoint-3" / "optimizer.pt")
    state["param_groups"] = state["param_groups"][:1]
    (run / "checkpoint-3" / MANIFEST).unlink()
    torch.save(state, run / "checkpoint-3" / "optimizer.pt")
    trainer = make_run(make_model, make_trainer, lm_rows, max_steps=4)
    with pytest.raises(CheckpointError, match=r"checkpoint-3: the optimizer .*cannot be restored"):
        trainer.train(resume_from_checkpoint=str(run / "checkpoint-3"))


def test_copies_differ_by_more_than_what_each_process_writes(run, tmp_path):
    """On disks of their own, machines keep the random states and places in a stream of their own processes alone."""
    one = run / "checkpoint-3"
    other = Path(shutil.copytree(one, tmp_path / "other"))
    for name in ("rng_state_{}.pth", "stream_position_{}.json"):
        (one / name.format(0)).write_text("first")
        (other / name.format(1)).write_text("of another process")
    expected = contents(one)
    assert difference(other, expected) is None
    (other / "scheduler.pt").unlink()
    assert difference(other, expected) == "scheduler.pt is not there"


def test_rotation_counts_whole_ones_only(run):
    halve(run / "checkpoint-2" / "optimizer.pt")
    rotate(run, 2, run / "checkpoint-3", None, lambda folder: damage(folder) is None)
    assert [folder.name for folder in list_checkpoints(run)] == ["checkpoint-1", "checkpoint-3"]
    rotate(run, 1, run / "checkpoint-3", str(run / "checkpoint-1"), lambda folder: True)
    assert [folder.name for folder in list_checkpoints(run)] == ["checkpoint-1", "checkpoint-3"]
    rotate(run, None, run / "checkpoint-3", None, lambda folder: True)
    rotate(run, 1, run / "checkpoint-3", None, lambda folder: True)
    assert [folder.name for folder in run.iterdir()] == ["checkpoint-3"]


def test_the_best_checkpoint_has_its_last_name(make_model, make_trainer, lm_rows, tmp_path):
    trainer = make_run(
        make_model,
        make_trainer,
        lm_rows,
        eval_dataset=lm_rows,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        save_total_limit=1,
    )
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert best == str(tmp_path / "run" / f"checkpoint-{trainer.state.best_global_step}") and os.path.isdir(best)
    assert (
        json.loads((tmp_path / "run" / os.path.basename(best) / "trainer_state.json").read_text())[
            "best_model_checkpoint"
        ]
        == best
    )


def test_an_upload_gets_the_checkpoint_under_its_last_name(make_model, make_trainer, lm_rows, tmp_path, monkeypatch):
    pushed = []
    monkeypatch.setattr(PublishingTrainer, "init_hf_repo", lambda self: None)
    monkeypatch.setattr(
        PublishingTrainer, "_push_from_checkpoint", lambda self, folder: pushed.append((folder, damage(Path(folder))))
    )
    trainer = make_run(make_model, make_trainer, lm_rows, max_steps=1)
    trainer.args.push_to_hub = True
    trainer.train()
    assert pushed == [(str(tmp_path / "run" / "checkpoint-1"), None)]


@pytest.mark.parametrize("how", ["moved", "named otherwise"])
def test_the_best_checkpoint_of_a_folder_that_was_moved(make_model, make_trainer, lm_rows, tmp_path, monkeypatch, how):
    monkeypatch.chdir(tmp_path)
    options = {"eval_dataset": lm_rows, "eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True}
    # The loss falls, and the largest one is the best.
    options |= {
        "save_total_limit": 2,
        "learning_rate": 1e-2,
        "metric_for_best_model": "loss",
        "greater_is_better": True,
    }
    first = make_run(make_model, make_trainer, lm_rows, max_steps=3, **options)
    first.train()
    best = load_file(tmp_path / "run" / "checkpoint-1" / "model.safetensors")
    assert first.state.best_global_step == 1
    name = "run"
    if how == "moved":
        (tmp_path / "run").rename(tmp_path / "elsewhere")
        name = "elsewhere"
    trainer = make_run(make_model, make_trainer, lm_rows, name=name, max_steps=5, **options)
    if how == "named otherwise":
        trainer.args.output_dir = name
    trainer.train(resume_from_checkpoint=True)
    assert sorted(entry.name for entry in (tmp_path / name).iterdir()) == ["checkpoint-1", "checkpoint-5"]
    found = load_file(tmp_path / name / "checkpoint-1" / "model.safetensors")
    assert all(torch.equal(value, found[key]) for key, value in best.items())
    parameters = dict(trainer.model.named_parameters())
    assert all(
        torch.equal(best[key], value)
        for key, value in parameters.items()
        if key in best and value.shape == best[key].shape
    )


def test_rotation_keeps_what_another_run_can_use(make_model, make_trainer, lm_rows, tmp_path):
    """Weights alone are no damage."""
    make_run(make_model, make_trainer, lm_rows, name="run", save_only_model=True, max_steps=2).train()
    make_run(make_model, make_trainer, lm_rows, name="run", save_total_limit=5, max_steps=3, save_steps=3).train()
    names = [folder.name for folder in list_checkpoints(tmp_path / "run")]
    assert names == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]


def test_the_best_checkpoint_is_that_of_the_run_that_goes_on(make_model, make_trainer, lm_rows, tmp_path):
    """Not one of the same step that lies in the new output folder."""
    options = {"eval_dataset": lm_rows, "eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True}
    options |= {"learning_rate": 1e-2, "metric_for_best_model": "loss", "greater_is_better": True}
    make_run(make_model, make_trainer, lm_rows, name="a", max_steps=2, **options).train()
    make_run(make_model, make_trainer, lm_rows, name="b", max_steps=1, seed=7, **options).train()
    trainer = make_run(make_model, make_trainer, lm_rows, name="b", max_steps=3, **options)
    trainer.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert trainer.state.best_model_checkpoint == str(tmp_path / "a" / "checkpoint-1")
