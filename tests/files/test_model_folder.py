"""The folder of a model: outputs that would destroy what is read, and models that take each other's place."""

import errno
import json
import os
import stat
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from hf_bitdistill import pack
from hf_bitdistill.cli.main import main
from hf_bitdistill.files import model_folder
from hf_bitdistill.files.model_folder import check_output, replace_model
from hf_bitdistill.files.weight_files import find_weight_files, new_staging
from optimum.bitnet import BitNetModelForCausalLM
from optimum.bitnet.export import export
from students import make_student


def names(folder):
    return {path.name for path in folder.iterdir()}


def same_weights(folder, model):
    state = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    return all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


# ---- outputs over, in and around inputs ------------------------------------------------------------------------------


def outputs(source):
    """Ways to say "over", "in" and "around" a folder."""
    link = source.parent.parent / "link"
    link.symlink_to(source, target_is_directory=True)
    return {
        source: "is",
        source / ".." / source.name: "is",
        link: "is",
        source / "deep" / "er": "lies inside",
        link / "in": "lies inside",
        source.parent: "contains",
    }


def test_output_over_in_and_around_an_input(tmp_path, monkeypatch):
    source = tmp_path / "models" / "student"
    source.mkdir(parents=True)
    for output, relation in outputs(source).items():
        with pytest.raises(ValueError, match=rf"{relation} .*student.*the model that is read.*another folder"):
            check_output(output, model=source)
    for output in (tmp_path / "other", source.parent / "student-packed", source.parent / "studen"):
        check_output(output, model=source, teacher="some/hub-id", corpus=None)
    monkeypatch.chdir(source)
    with pytest.raises(ValueError, match="lies inside"):
        check_output("out", model=".")
    with pytest.raises(ValueError, match="teacher"):
        check_output(source, model=None, teacher=str(source))


@pytest.fixture
def student(tmp_path, tiny_tokenizer):
    folder = tmp_path / "models" / "student"
    make_student(vocab_size=384).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_no_command_writes_over_in_or_around_its_input(student, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("a b c\n")
    before = content(tmp_path)
    model = ["--model_name_or_path", student]
    for output, relation in outputs(student).items():
        for command in (
            ["pack", student, output],
            ["warm-start", *model, "--corpus", text, "--output_dir", output],
            ["pretrain", *model, "--corpus", text, "--output_dir", output],
            ["pretrain", "--model_name_or_path", "x/y", "--teacher_model_name_or_path", student, "--corpus", text]
            + ["--output_dir", output],
            ["distill", *model, "--teacher_model_name_or_path", student, "--task", "sst2", "--output_dir", output],
            ["distill", *model, "--teacher_model_name_or_path", student, "--task", "sst2"]
            + ["--output_dir", tmp_path / "out", "--pack_to", output],
        ):
            assert main(list(map(str, command))) == 1, command
            assert relation in capsys.readouterr().err, command
        with pytest.raises(ValueError, match=relation):
            export(str(student), Path(output))
    distill = ["distill", *model, "--teacher_model_name_or_path", student, "--task", "sst2", "--output_dir"]
    for output, packed in (("out", "out"), ("out", "out/packed"), ("deep/out", "deep")):
        command = [*distill, tmp_path / output, "--pack_to", tmp_path / packed]
        (tmp_path / output).mkdir(parents=True, exist_ok=True)
        assert main(list(map(str, command))) == 1
        assert "the student that is read" in capsys.readouterr().err
    assert content(tmp_path) == before


def test_the_native_class_does_not_write_over_its_source(student, native_decoder):
    model = BitNetModelForCausalLM.from_pretrained(student, export=True)
    for output in (student, student / "in", student.parent):
        with pytest.raises(ValueError, match="the model that is read"):
            model.save_pretrained(output)


# ---- one model in place of another -----------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [("50GB", "20KB"), ("20KB", "50GB"), ("20KB", "30KB")])
def test_old_weight_files_go_and_other_files_stay(tmp_path, sizes):
    folder = tmp_path / "model"
    old, new = make_student(), make_student(options={"weight_granularity": "row"})
    old.save_pretrained(folder, max_shard_size=sizes[0])
    others = {"README.md", "pytorch_model.bin", "notes", "adapter_model.safetensors", "checkpoint-3"}
    for name in others - {"checkpoint-3"}:
        (folder / name).write_text("mine")
    old.save_pretrained(folder / "checkpoint-3")
    inode = folder.stat().st_ino
    new.save_pretrained(folder, max_shard_size=sizes[1])
    new.save_pretrained(tmp_path / "fresh", max_shard_size=sizes[1])
    assert names(folder) == names(tmp_path / "fresh") | others
    assert folder.stat().st_ino == inode and (folder / "notes").read_text() == "mine"
    assert same_weights(folder, new) and same_weights(folder / "checkpoint-3", old)
    assert (
        content(folder / "checkpoint-3").keys() and "transformers_weights" not in (folder / "config.json").read_text()
    )


def test_an_exception_leaves_the_old_model(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    old, new = make_student(), make_student(options={"weight_granularity": "row"})
    old.save_pretrained(folder)
    before = content(folder)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("transformers.modeling_utils.safe_save_file", full)
        with pytest.raises(OSError, match="No space"):
            new.save_pretrained(folder)
        with pytest.raises(OSError, match="No space"):
            new.save_pretrained(tmp_path / "fresh")
    assert content(folder) == before and not (tmp_path / "fresh").exists()
    with pytest.raises(KeyboardInterrupt), replace_model(folder) as staging:
        (staging / "config.json").write_text("{}")
        raise KeyboardInterrupt
    assert content(folder) == before
    # After the new model is complete, it stays, and the next save puts everything in its place.
    with monkeypatch.context() as patch:
        patch.setattr(model_folder, "_link", full)
        with pytest.raises(OSError, match="No space"):
            new.save_pretrained(folder)
    assert same_weights(folder, new)
    old.save_pretrained(folder)
    assert same_weights(folder, old) and names(folder) == {path.name for path in before}


def test_without_hard_links(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(errno.EPERM, "Operation not permitted")

    folder = tmp_path / "model"
    old, new = make_student(), make_student(options={"weight_granularity": "row"})
    old.save_pretrained(folder)
    monkeypatch.setattr(os, "link", refuse)
    new.save_pretrained(folder)
    assert same_weights(folder, new) and not [name for name in names(folder) if ".tmp" in name]


def test_a_symbolic_link_and_the_working_directory(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    old, new = make_student(), make_student(options={"weight_granularity": "row"})
    old.save_pretrained(folder)
    (tmp_path / "link").symlink_to(folder, target_is_directory=True)
    new.save_pretrained(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and same_weights(folder, new)
    monkeypatch.chdir(folder)
    old.save_pretrained(".")
    assert os.path.samefile(os.getcwd(), folder) and same_weights(folder, old)
    with pytest.raises(NotADirectoryError, match=r"README\.md is a file"):
        (folder / "README.md").write_text("")
        old.save_pretrained(folder / "README.md")


def test_links_in_a_folder_are_replaced_not_followed(tmp_path):
    """As the files of a model are in the cache of the Hub."""
    old, new = make_student(), make_student(options={"weight_granularity": "row"})
    old.save_pretrained(tmp_path / "blobs")
    folder = tmp_path / "model"
    folder.mkdir()
    for file in (tmp_path / "blobs").iterdir():
        (folder / file.name).symlink_to(file)
    new.save_pretrained(folder)
    assert same_weights(folder, new) and same_weights(tmp_path / "blobs", old)


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_weights_have_the_mode_of_other_files(tmp_path, mask):
    previous = os.umask(mask)
    try:
        packed = pack(make_student())
        packed.save_pretrained(tmp_path / "one")
        packed.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
        packed.save_pretrained(tmp_path / "one", variant="fp32")
    finally:
        os.umask(previous)
    modes = {
        stat.S_IMODE(file.stat().st_mode) for folder in ("one", "shards") for file in (tmp_path / folder).iterdir()
    }
    assert modes == {0o666 & ~mask}
    assert (tmp_path / "one" / "model.fp32.safetensors").is_file()
    AutoModelForCausalLM.from_pretrained(tmp_path / "one", variant="fp32")


def test_leftovers_of_killed_saves_go_but_not_work_in_progress(tmp_path):
    folder = tmp_path / "model"
    student = make_student()
    student.save_pretrained(folder)
    leftover = new_staging(folder)
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half")
    (folder / ".tmpAb3dE9").write_bytes(b"half")  # safetensors' own
    (folder / ".tmpAb3dE9").chmod(0o600)
    (folder / ".tmpfolder").write_text("mine")
    (folder / ".tmpfiles").mkdir()
    (folder / ".tmp_notes").write_text("mine")
    with replace_model(folder) as busy:
        student.save_pretrained(folder)
        assert busy.is_dir() and not leftover.exists()
    assert names(folder) == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        ".tmpfiles",
        ".tmpfolder",
        ".tmp_notes",
    }


def test_an_interrupted_save_is_named(tmp_path, caplog, native_decoder):
    """Between the moment that the new model counts and its files' usual names."""
    folder = tmp_path / "model"
    old, new = make_student(), make_student(options={"weight_granularity": "row"})
    old.save_pretrained(folder)
    child = os.fork()
    if child == 0:
        model_folder._link = lambda *_: os._exit(9)
        try:
            new.save_pretrained(folder, max_shard_size="20KB")
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert "transformers_weights" in json.loads((folder / "config.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert "interrupted" in caplog.text and str(folder) in caplog.text
    assert same_weights(folder, new)
    files = find_weight_files(folder, AutoConfig.from_pretrained(folder))
    assert all(Path(file).parent.parent == folder for file in files)
    native = BitNetModelForCausalLM.from_pretrained(folder, export=True)
    native.save_pretrained(tmp_path / "packed")
    assert same_weights(tmp_path / "packed", pack(new))
    with pytest.raises(ValueError, match="the model that is read"):
        native.save_pretrained(folder)
    # What was loaded from there can be saved there, and elsewhere.
    for target in (tmp_path / "other", folder):
        model.save_pretrained(target)
        assert same_weights(target, new)
        assert names(target) == {"config.json", "generation_config.json", "model.safetensors"}


def test_a_path_with_an_at_sign(tmp_path, native_decoder):
    student = make_student()
    for name in ("a@b", "a@b@c"):
        folder = tmp_path / name / "model"
        student.save_pretrained(folder / "online")
        pack(student).save_pretrained(folder / "packed")
        assert same_weights(folder / "online", student)
        first = BitNetModelForCausalLM.from_pretrained(folder / "packed")
        second = BitNetModelForCausalLM.from_pretrained(str(folder / "online"), export=True)
        third = BitNetModelForCausalLM.from_pretrained(
            folder, subfolder="packed", config=AutoConfig.from_pretrained(folder / "packed")
        )
        tokens = torch.arange(1, 6)[None]
        assert torch.equal(first(tokens).logits, second(tokens).logits)
        assert torch.equal(first(tokens).logits, third(tokens).logits)
        export(str(folder / "online"), tmp_path / f"{name}-exported")


def test_how_an_older_model_generates_goes_with_it(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "generation_config.json", "notes.txt"):
        (folder / name).write_text("{}")
    (folder / "model.safetensors").write_bytes(b"old")
    with replace_model(folder) as staging:
        (staging / "config.json").write_text("{}")
        (staging / "model.safetensors").write_bytes(b"new")
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors", "notes.txt"]
