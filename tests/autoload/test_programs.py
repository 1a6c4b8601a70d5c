"""What `bitdistill exec` runs, and what it refuses."""

import os
import sys

import pytest

from hf_bitdistill.autoload.programs import PATH_FOLDER, python_command, with_hook


def script(folder, name, text, mode=0o755):
    (folder / name).write_text(text)
    (folder / name).chmod(mode)
    return str(folder / name)


def test_programs_of_this_python(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    console = script(tmp_path, "tool", f"#!{sys.executable}\nprint()\n")
    for name, first in [
        ("by_env", "#!/usr/bin/env -S python3 -s"),
        ("long", f"#!/bin/sh\n'''exec' \"{sys.executable}\" \"$0\" \"$@\"\n' '''"),
        ("any", "#!python3"),
    ]:
        path = script(tmp_path, name, f"{first}\nprint()\n")
        assert python_command([name, "-x"]) == [sys.executable, path, "-x"]
    script(tmp_path, "run.py", "print()", mode=0o644)
    (tmp_path / "folder").mkdir()
    script(tmp_path / "folder", "__main__.py", "print()", mode=0o644)
    assert python_command(["tool", "--flag", "a b"]) == [sys.executable, console, "--flag", "a b"]
    assert python_command([console]) == [sys.executable, console]
    assert python_command(["run.py", "1"]) == [sys.executable, "run.py", "1"]
    assert python_command(["folder"]) == [sys.executable, "folder"]
    assert python_command(["-m", "module", "-E"]) == [sys.executable, "-m", "module", "-E"]
    assert python_command([sys.executable, "-X", "dev", "run.py", "-I"]) == [
        sys.executable, "-X", "dev", "run.py", "-I",
    ]  # fmt: skip
    assert python_command(["-W", "error", "-c", "print()"]) == [sys.executable, "-W", "error", "-c", "print()"]


@pytest.mark.parametrize("options", [["-I", "x.py"], ["-sE", "x.py"], ["-X", "dev", "-S", "-m", "x"], ["-Im", "x"]])
def test_options_that_keep_the_hook_out(options):
    with pytest.raises(ValueError, match="keeps Python from reading"):
        python_command(options)


def test_what_is_no_python_program(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    script(tmp_path, "shell", "#!/bin/bash\necho\n")
    script(tmp_path, "binary", "\x7fELF")
    script(tmp_path, "foreign", "#!/opt/other/bin/python3\n")
    script(tmp_path, "perl", "#!/usr/bin/env perl\n")
    (tmp_path / "empty").mkdir()
    refusals = {
        "shell": "is no Python program: it is run by /bin/bash",
        "perl": "is no Python program: it is run by perl",
        "binary": "is no Python program: its first line names no interpreter",
        "foreign": r"runs in another Python \(/opt/other/bin/python3\)",
        str(tmp_path / "empty"): "a folder without __main__.py",
    }
    for name, message in refusals.items():
        with pytest.raises(ValueError, match=message):
            python_command([name])
    with pytest.raises(FileNotFoundError, match="no program 'nothing'"):
        python_command(["nothing"])
    with pytest.raises(ValueError, match="name a program"):
        python_command([])


def test_the_environment_keeps_its_path():
    assert with_hook({"A": "1"}) == {"A": "1", "PYTHONPATH": str(PATH_FOLDER)}
    assert with_hook({"PYTHONPATH": "x"})["PYTHONPATH"] == f"{PATH_FOLDER}{os.pathsep}x"
