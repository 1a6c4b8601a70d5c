"""The door of `bitdistill`: what can be said at once, and then the command.

It stands outside of `hf_bitdistill`, whose import registers with transformers and so takes seconds: nobody should wait that long for a list of
commands. `optimum-cli` reads the same list at every start. Only the standard library is imported here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence


# Command -> what the overview says, in one line of a terminal of 80 columns. The module of the same name (with `_`) in `hf_bitdistill.cli`
# (`import_` for a keyword) has `run(argv, prog)`.
COMMANDS = {
    "quickstart": "the whole recipe on a small model, in minutes, offline",
    "run": "a model and a dataset to a packed ternary student",
    "data": "what a model will see of a dataset, and what is left out",
    "warm-start": "a ternary student whose blocks learned from the model's own",
    "pretrain": "continual pre-training of a student on plain text",
    "cache-teacher": "a teacher's most likely tokens, to distil without it",
    "distill": "distil a teacher into a ternary student on a task",
    "pack": "a trained student in 2 or 1.6 bits a weight",
    "verify": "whether a packed student is the one that was packed",
    "card": "make or refresh the card of a student",
    "push": "publish a student on the Hugging Face Hub, packed",
    "export": "a student in files of llama.cpp, bitnet.cpp, transformers",
    "import": "other programs' ternary checkpoints as a packed student",
    "evaluate": "measure a model on a task, or its perplexity on a text",
    "benchmark": "speed, memory and size of a packed student on this CPU",
    "serve": "an OpenAI-compatible server for a packed student",
    "chat": "chat with a packed student in the terminal",
    "report": "losses, scores and weights of a run on one HTML page",
    "exec": "run a Python program that then loads ternary models",
    "autoload": "let every Python program here load ternary models",
    "env": "what is installed, and what computes",
}

# Variable of the environment that asks for what the libraries say; `--verbose` sets it.
VERBOSE = "BITDISTILL_VERBOSE"

# Exit status of a program that a closed pipe ended, as of one that the signal ended.
CLOSED_PIPE = 141


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items()]
    head = "usage: bitdistill [-v] COMMAND [OPTIONS]    (COMMAND --help lists its options)"
    return "\n".join([head, *lines, "-v, --verbose: with what the libraries say"])


def version() -> str:
    from importlib.metadata import PackageNotFoundError

    try:
        from importlib.metadata import version as installed

        return installed("hf-bitdistill")
    except PackageNotFoundError:  # a source tree on PYTHONPATH
        from hf_bitdistill import __version__

        return __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status (0 done, 1 failed, 2 wrong usage)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] in ("-v", "--verbose"):
        argv.pop(0)
        os.environ[VERBOSE] = "1"  # (for the processes that a command starts, too)
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        print(version())
        return 0
    command = argv[0]
    if command not in COMMANDS:
        print(f"bitdistill: unknown command {command!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    return dispatch(command, argv[1:], prog=f"bitdistill {command}")


def dispatch(command: str, argv: Sequence[str], prog: str) -> int:
    """Run a command with its own arguments, unless they can be answered without it: by a help or a refusal."""
    from .answers import answer

    status = answer(command, argv, prog)
    if status is not None:
        return status
    from hf_bitdistill.cli.main import run_command

    return run_command(command, argv, prog)


def output_is_gone() -> bool:
    """Whether what read this program's output has ended (`bitdistill ... | head`). Then nothing is written any more, and nothing complains."""
    import select

    try:
        sys.stdout.flush()
        if not hasattr(select, "poll"):
            return False
        # Where nothing was left to be flushed, the pipe itself knows.
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        gone = any(event & select.POLLERR for _, event in poll.poll(0))
    except BrokenPipeError:
        gone = True
    except (OSError, ValueError):  # an output that is no file
        return False
    if gone:
        # What is still in the buffer is flushed at Python's end, which would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return gone


def script() -> int:
    """What the `bitdistill` script runs: `main`, which ends quietly where its output is gone."""
    try:
        status = main()
    except SystemExit as end:  # of argparse
        if not isinstance(end.code, int):
            raise
        status = end.code
    except BrokenPipeError:
        if not output_is_gone():
            raise
        return CLOSED_PIPE
    return CLOSED_PIPE if output_is_gone() else status
