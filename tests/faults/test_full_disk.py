"""A small disk: refused before any work where it is too small, and a disk that fills up costs nothing that was saved."""

import os
import shutil
import subprocess
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from hf_bitdistill.cli import pretrain
from hf_bitdistill.cli.main import main
from hf_bitdistill.files.tensor_headers import CheckpointError
from hf_bitdistill.files.training_checkpoints import damage, list_checkpoints


@contextmanager
def small_disk(folder, size):
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("name", ["pretrain", "distill", "warm-start", "pack"])
def test_too_little_room_is_told_before_any_work(name, commands, tmp_path, teacher, capsys, monkeypatch):
    with small_disk(tmp_path / "disk", "64k") as disk:
        if name == "pack":
            assert main(commands("warm-start", tmp_path / "student")) == 0
            command = ["pack", str(tmp_path / "student"), str(disk / "packed")]
        else:
            command = commands(name, disk / "run")
        capsys.readouterr()
        assert main(command) == 1
        written = capsys.readouterr()
        (line,) = [line for line in written.err.splitlines() if line.startswith("bitdistill")]
        assert "of free space and about" in line and "calibrated" not in written.out
        assert list(disk.iterdir()) == []


@pytest.mark.parametrize("name", ["pretrain", "distill", "warm-start", "pack", "evaluate"])
def test_an_output_that_cannot_be_written_is_told_before_any_work(
    name, commands, tmp_path, teacher, capsys, monkeypatch
):
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" / "run"
    # Neither model nor text is read.
    for module in (pretrain, "hf_bitdistill.cli.distill", "hf_bitdistill.cli.warm_start", "hf_bitdistill.cli.pack"):
        target = module if isinstance(module, str) else module.__name__
        monkeypatch.setattr(f"{target}.load_tokenizer", None)
    monkeypatch.setattr("hf_bitdistill.cli.evaluate.load_model", None)
    if name == "pack":
        command = ["pack", str(teacher), str(place)]
    elif name == "evaluate":
        command = ["evaluate", "--model_name_or_path", str(teacher), "--corpus", "x", "--output_file", str(place)]
    else:
        command = commands(name, place)
    assert main(command) == 1
    assert "is a file, not a folder" in capsys.readouterr().err


def test_a_disk_that_fills_up(commands, tmp_path, capsys, monkeypatch):
    """In the third checkpoint. The second stays whole, and once there is room the same command ends as if nothing had been."""
    expected = tmp_path / "expected"
    assert main(commands("pretrain", expected)) == 0
    make = pretrain.make_trainer

    class Fill(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                free = shutil.disk_usage(args.output_dir).free
                with open(os.path.join(args.output_dir, "other"), "wb") as file:
                    file.write(b"x" * max(0, free - 300_000))

    def make_filling(*args, **kwargs):
        trainer = make(*args, **kwargs)
        trainer.add_callback(Fill())
        return trainer

    with small_disk(tmp_path / "disk", "8m") as disk:
        output = disk / "run"
        with monkeypatch.context() as patch:
            patch.setattr(pretrain, "make_trainer", make_filling)
            patch.setenv("BITDISTILL_TRACEBACK", "1")
            with pytest.raises(
                CheckpointError, match=r"checkpoint-3 could not be written .*free.*checkpoint-2"
            ) as error:
                main(commands("pretrain", output))
            assert "\n" not in str(error.value)
        assert [folder.name for folder in list_checkpoints(output)] == ["checkpoint-1", "checkpoint-2"]
        assert all(damage(folder) is None for folder in list_checkpoints(output))
        assert sorted(entry.name for entry in output.iterdir()) == [
            "checkpoint-1",
            "checkpoint-2",
            "other",
            "run_options.json",
        ]
        (output / "other").unlink()
        assert main(commands("pretrain", output)) == 0
        states = [load_file(path / "model.safetensors") for path in (output, expected)]
        assert all(torch.equal(states[0][name], tensor) for name, tensor in states[1].items())


def test_every_file_of_the_last_save_is_mended(commands, tmp_path):
    output = tmp_path / "run"
    assert main(commands("distill", output)) == 0
    files = {file.name: file.read_bytes() for file in output.iterdir() if file.is_file()}
    # (Not of the last save: without the options of the run nothing goes on there.)
    del files["run_options.json"]
    assert {"model.safetensors", "config.json", "trainer_state.json", "README.md", "evaluation.json"} < set(files)
    for harm in (lambda file: os.truncate(file, 0), os.unlink):
        for name in files:
            harm(output / name)
        assert main(commands("distill", output)) == 0
        for name, content in files.items():
            # Only the state and the measurement of the end say how long something took.
            if name not in ("trainer_state.json", "evaluation.json", "training_args.bin"):
                assert (output / name).read_bytes() == content, name
            assert (output / name).stat().st_size
        state = pretrain._read_state(str(output))
        assert state.global_step == 3 and len(state.log_history) >= 3


def test_numbers_are_printed_before_they_are_written(commands, tmp_path, teacher, capsys, monkeypatch):
    def fail(path, text):
        raise OSError("disk full")

    monkeypatch.setattr("hf_bitdistill.cli.evaluate.write_text", fail)
    corpus = tmp_path / "data" / "corpus.txt"
    command = [
        "evaluate",
        "--model_name_or_path",
        teacher,
        "--corpus",
        corpus,
        "--block_size",
        "32",
        "--sample_by",
        "line",
    ]
    assert main([str(part) for part in [*command, "--output_file", tmp_path / "result.json"]]) == 1
    assert '"perplexity"' in capsys.readouterr().out
