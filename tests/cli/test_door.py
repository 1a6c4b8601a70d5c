"""What `bitdistill` says without loading torch, and how it ends where nobody reads on."""

import os
import subprocess
import sys

import pytest

from hf_bitdistill import __version__
from hf_bitdistill_cli import CLOSED_PIPE, COMMANDS, usage


DOOR = [sys.executable, "-c", "import sys; from hf_bitdistill_cli import script; sys.exit(script())"]
# Reports on stderr, at the end, whether something heavy was imported.
WATCHED = (
    "import atexit, sys; atexit.register(lambda: print(sorted({'torch', 'transformers', 'hf_bitdistill', 'numpy'} & set(sys.modules)),"
    " file=sys.stderr)); from hf_bitdistill_cli import script; sys.exit(script())"
)


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["--help"], 0, "usage: bitdistill COMMAND"),
        (["--version"], 0, __version__),
        ([], 2, "usage"),
        (["pakc"], 2, ""),
    ],
)
def test_it_answers_without_torch(arguments, status, text):
    result = subprocess.run([sys.executable, "-c", WATCHED, *arguments], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr.splitlines()[-1]) == (status, "[]")
    assert text in result.stdout and (status == 0 or not arguments or "unknown command 'pakc'" in result.stderr)


def test_the_overview_fits_a_screen():
    lines = usage().splitlines()
    assert len(lines) < 24 and max(map(len, lines)) <= 80
    assert all(f"  {name} " in usage() for name in COMMANDS)


@pytest.mark.parametrize(("arguments", "unbuffered"), [(["--help"], ""), (["--help"], "1"), (["env"], "")])
def test_it_ends_quietly_where_nobody_reads(arguments, unbuffered):
    reading, writing = os.pipe()
    os.close(reading)
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    result = subprocess.run(
        [*DOOR, *arguments], stdout=writing, stderr=subprocess.PIPE, text=True, timeout=120, env=environment
    )
    os.close(writing)
    assert result.returncode == CLOSED_PIPE
    assert "Error" not in result.stderr and "error" not in result.stderr
