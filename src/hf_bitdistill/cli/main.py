"""Runs a command of `bitdistill` and turns expected failures into one line. The list of commands is in `hf_bitdistill_cli`."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import keyword
import os
import sys
from collections.abc import Callable, Iterator, Sequence

from hf_bitdistill_cli import CLOSED_PIPE, main, output_is_gone

from ..machine import processes
from ..machine.notices import without_notices
from ..machine.processes import ProcessesError


# What the processes of a launcher do together, and prints once. Any other command is of one process.
PARALLEL = frozenset({"run", "quickstart", "warm-start", "pretrain", "distill", "evaluate", "cache-teacher"})
# A program of the user's, which knows itself what it does in each process.
_FOREIGN = frozenset({"exec"})

# Commands that were run in this process, by which the processes of a launcher know that they speak of the same one.
_COMMANDS = itertools.count()


def run_command(command: str, argv: Sequence[str], prog: str) -> int:
    """Run one command with its own arguments. `prog` is how its messages call it.

    Under a launcher (`torchrun`, `accelerate launch`) a command of one process is run by the first; the others end at once with status 0.
    """
    name = command.replace("-", "_")

    def run() -> None:
        importlib.import_module(f".{name}_" if keyword.iskeyword(name) else f".{name}", __package__).run(
            list(argv), prog
        )

    if command in _FOREIGN:
        return explain_errors(run, prog)
    with without_notices(argv):
        if command not in PARALLEL:
            return run_in_first(run, prog)
        with _printed_once():
            return explain_errors(run, prog)


def run_in_first(run: Callable[[], None], prog: str) -> int:
    """As [`explain_errors`], in the first process of a launcher alone. The others do not wait: what it does may take longer than any
    collective call does."""
    others = processes.launched() - 1
    if others < 1:
        return explain_errors(run, prog)
    if not processes.is_first():
        return 0
    print(
        f"{prog}: this command runs in one process: {others} other(s) had nothing to do", file=sys.stderr, flush=True
    )
    with processes.alone():
        return explain_errors(run, prog)


@contextlib.contextmanager
def _printed_once() -> Iterator[None]:
    """What all processes would print on standard output is printed by the first."""
    if processes.launched() == 1 or processes.is_first():
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def explain_errors(run: Callable[[], None], prog: str) -> int:
    """Run something; what a user can cause becomes one line on stderr, which of several processes the first prints that fails. Returns the
    exit status."""
    from huggingface_hub.errors import HTTPError
    from safetensors import SafetensorError

    number = next(_COMMANDS)
    try:
        run()
    except BrokenPipeError:
        if not output_is_gone():
            raise
        return CLOSED_PIPE
    except (
        SafetensorError,
        HTTPError,
        ValueError,
        TypeError,
        OSError,
        ImportError,
        NotImplementedError,
        FloatingPointError,
        ProcessesError,
    ) as error:
        # What a user can cause: a bad path or option, a damaged file, models that do not fit. Anything else is a bug
        # and keeps its traceback.
        if os.environ.get("BITDISTILL_TRACEBACK"):
            raise
        message = " ".join(str(error).split()) or type(error).__name__
        if processes.launched() > 1 and not (processes.is_first() or isinstance(error, ProcessesError)):
            message = f"{processes.place()}: {message}"
        if processes.speaks(f"failure of command {number}"):
            print(f"{prog}: error: {message} (BITDISTILL_TRACEBACK=1 shows where)", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        if processes.launched() == 1 or processes.is_first():
            print(f"{prog}: interrupted", file=sys.stderr)
        return 130
    except Exception:
        if not processes.speaks(f"failure of command {number}"):
            return 1
        raise
    return 0


__all__ = ["explain_errors", "main", "run_command"]

if __name__ == "__main__":
    sys.exit(main())
