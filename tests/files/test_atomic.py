"""Files and folders that are written aside and renamed."""

import os
from pathlib import Path

import pytest

from faults.killing import kill_points, number_of_operations, run_and_kill
from hf_bitdistill.files import atomic


def write_model(folder: Path, version: str, names: tuple[str, ...] = ("a", "b", "c")) -> None:
    atomic.remove_leftovers(folder)
    aside = atomic.name_aside(folder)
    aside.mkdir()
    for name in names:
        (aside / name).write_text(version)
    atomic.put_in_place(aside, folder)


def test_a_folder_is_replaced_whole(tmp_path):
    folder = tmp_path / "model"
    write_model(folder, "old")
    (folder / "stale").write_text("old")
    write_model(folder, "new")
    assert {entry.name: entry.read_text() for entry in folder.iterdir()} == dict.fromkeys("abc", "new")
    assert os.listdir(tmp_path) == ["model"]


def test_what_fails_leaves_the_old_one_and_nothing_else(tmp_path):
    write_model(tmp_path / "model", "old")
    (tmp_path / "file").write_text("old")
    with pytest.raises(FileNotFoundError):
        write_model(tmp_path / "model", "new", names=("a", "nowhere/b"))
    # (Of a folder the next writer removes what was left.)
    atomic.remove_leftovers(tmp_path / "model")
    with pytest.raises(RuntimeError), atomic.file_aside(tmp_path / "file") as aside:
        aside.write_text("new")
        raise RuntimeError
    assert (tmp_path / "model" / "a").read_text() == (tmp_path / "file").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["file", "model"]


def test_without_an_exchange_of_names_the_new_one_is_there_in_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    write_model(tmp_path / "model", "old")
    write_model(tmp_path / "model", "new")
    assert (tmp_path / "model" / "c").read_text() == "new"
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_who_is_killed_finds_the_old_one_or_the_new_one(tmp_path):
    folder = tmp_path / "model"

    def overwrite():
        write_model(folder, "new")

    write_model(folder, "old")
    operations = number_of_operations(overwrite, folder)
    assert operations > 6
    seen = set()
    for point in kill_points(operations, operations, seed=0):
        write_model(folder, "old")
        assert run_and_kill(overwrite, folder, at_operation=point).killed
        contents = {entry.name: entry.read_text() for entry in folder.iterdir()}
        assert len(set(contents.values())) == 1 and len(contents) == 3
        seen |= set(contents.values())
    write_model(folder, "new")
    assert seen == {"old", "new"}
    assert os.listdir(tmp_path) == ["model"]


def test_a_text_is_replaced(tmp_path):
    for text in ("old", "new"):
        atomic.write_text(tmp_path / "file.json", text)
        assert (tmp_path / "file.json").read_text() == text
    assert os.listdir(tmp_path) == ["file.json"]
