"""`bitdistill exec -- PROGRAM ARGS`: run a Python program that loads ternary models as if it imported hf_bitdistill.

PROGRAM is a command that is written in Python (lm_eval, accelerate, transformers), `-m MODULE`, or FILE.py. It runs in this environment's
Python in place of this process, with its own arguments, input and exit status; Python programs that it starts load ternary models too.
"""

from __future__ import annotations

import os
import sys

from hf_bitdistill_cli.parsing import text_help
from hf_bitdistill_cli.spec import Spec

from ..autoload.programs import python_command, with_hook


USAGE = "-- PROGRAM [ARGS]"


def run(argv: list[str], prog: str) -> None:
    if argv[:1] in (["-h"], ["--help"]):
        print(text_help(Spec("text", __doc__, usage=USAGE), prog), end="")
        return
    command = python_command(argv[1:] if argv[:1] == ["--"] else argv)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(command[0], command, with_hook(os.environ))
