"""How a Python program is started with the hook."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path


#: A folder for PYTHONPATH, with nothing in it but the module that runs the hook.
PATH_FOLDER = Path(__file__).parent / "path"

_INTERPRETER = re.compile(r"python[\d.]*(\.exe)?")
# The second line of a script whose interpreter's path is too long for the first.
_LONG_PATH = re.compile(r"""'''exec' "?(?P<interpreter>[^"]+?)"? "\$0" "\$@\"""")
_WITH_ARGUMENT = "WX"  # options of Python that have one


def python_command(program: Sequence[str]) -> list[str]:
    """What runs a program in the Python that runs this.

    Args:
        program: `-m MODULE ...`, `FILE.py ...`, the name or path of a script that starts Python, or `python ...`.

    Raises:
        ValueError: there is nothing to run, it is no Python program, it is one of another Python, or it keeps Python from running the hook.
        FileNotFoundError: there is no such program.
    """
    if not program:
        raise ValueError("name a program: -m MODULE, FILE.py, or a command that is written in Python.")
    name, *arguments = program
    if name.startswith("-"):
        return _interpreter(program)
    file = Path(name)
    if file.suffix in (".py", ".pyw", ".pyz") and file.is_file():
        return [sys.executable, name, *arguments]
    if file.is_dir():
        if not (file / "__main__.py").is_file():
            raise ValueError(f"{name} is a folder without __main__.py: it is no Python program.")
        return [sys.executable, name, *arguments]
    found = shutil.which(name, path=os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")]))
    if found is None:
        raise FileNotFoundError(f"there is no program {name!r}, here or on the PATH.")
    if _INTERPRETER.fullmatch(Path(found).name):
        _check_same_python(name, found)
        return _interpreter(arguments)
    _check_same_python(name, _interpreter_of(found))
    return [sys.executable, found, *arguments]


def _interpreter(arguments: Sequence[str]) -> list[str]:
    """Python with options of its own, unless one of them keeps the hook out."""
    options = iter(arguments)
    for option in options:
        if not option.startswith("-") or option in ("-", "--") or option.startswith("--"):
            break
        letters = "".join(itertools.takewhile(lambda letter: letter not in "mcWX", option))
        kept_out = sorted(set(letters) & set("IES"))
        if kept_out:
            raise ValueError(
                f"-{kept_out[0]} keeps Python from reading what registers ternary models: leave it out, or `import hf_bitdistill` in the program."
            )
        if letters != option:
            kind = option[len(letters)]
            if kind not in _WITH_ARGUMENT:
                break
            if len(option) == len(letters) + 1:
                next(options, None)
    return [sys.executable, *arguments]


def _interpreter_of(script: str) -> str:
    """The interpreter that a script names.

    Raises:
        ValueError: it is no script, or one in another language.
    """
    with open(script, "rb") as opened:
        lines = opened.read(4096).split(b"\n", 2)
    if not lines[0].startswith(b"#!"):
        raise ValueError(f"{script} is no Python program: its first line names no interpreter.")
    first = lines[0][2:].decode(errors="replace").strip()
    words = first.split()
    if words and Path(words[0]).name == "env":
        words = [word for word in words[1:] if not word.startswith("-") and "=" not in word]
        first = words[0] if words else ""
    if words and Path(words[0]).name == "sh" and len(lines) > 1:
        long_path = _LONG_PATH.match(lines[1].decode(errors="replace"))
        first = long_path["interpreter"] if long_path else first
    # (A path with a space in it is one word.)
    interpreter = first if Path(first).is_file() else (first.split() or [""])[0]
    if not _INTERPRETER.fullmatch(Path(interpreter).name):
        raise ValueError(f"{script} is no Python program: it is run by {first or 'nothing'}.")
    return interpreter


def _check_same_python(name: str, interpreter: str) -> None:
    """Refuse a program of another environment, whose packages are not here, nor this one there."""
    path = Path(interpreter)
    if not path.is_absolute():  # whatever Python comes first
        return
    if path.parent.resolve() != Path(sys.executable).parent.resolve():
        raise ValueError(
            f"{name} runs in another Python ({interpreter}), not in {sys.executable}: install hf-bitdistill there, and use its bitdistill."
        )


def with_hook(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment in which Python runs the hook at its start."""
    before = environment.get("PYTHONPATH")
    return {**environment, "PYTHONPATH": os.pathsep.join([str(PATH_FOLDER), *([before] if before else [])])}
