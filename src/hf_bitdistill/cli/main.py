"""Entry point of `bitdistill`: finds the command and turns expected failures into one line."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import keyword
import os
import sys
from collections.abc import Callable, Iterator, Sequence

from .. import processes
from ..processes import ProcessesError


# Command -> what the overview says. The module of the same name (with `_`) in this package (`import_` for a keyword) has `run(argv, prog)`.
COMMANDS = {
    "quickstart": "show the whole recipe on a small model in minutes: no download, no options needed",
    "run": "a model and a dataset to a packed ternary student: the whole recipe, best by default",
    "data": "show what a model will see of a dataset: examples, lengths, labels, what is left out",
    "warm-start": "make a ternary student whose blocks learned from the model's own, from little text",
    "pretrain": "continual pre-training: make a ternary student of a model and train it on plain text",
    "cache-teacher": "write a teacher's most likely tokens once, to distil without it in memory",
    "distill": "distil a teacher into a ternary student on a task",
    "pack": "pack a trained student into 2 or 1.6 bits a weight",
    "verify": "whether a packed student, here or on the Hub, is the one that was packed",
    "card": "make or refresh the card of a student: what it is, what was measured, how it is loaded",
    "push": "publish a student on the Hugging Face Hub, packed",
    "export": "a packed student in the files of other programs: llama.cpp, bitnet.cpp, transformers alone",
    "import": "other programs' ternary checkpoints (GGUF, transformers' bitnet) as a packed student of ours",
    "evaluate": "measure a model on a task, or its perplexity on a text",
    "benchmark": "speed, memory and size of a packed model on this CPU, against other systems",
    "serve": "an OpenAI-compatible server for a packed student: transformers' own, on the native decoder",
    "chat": "chat with a packed student in the terminal",
    "report": "losses, scores and weights of a run on one HTML page",
    "exec": "run a Python program that loads ternary models as if it imported hf_bitdistill",
    "autoload": "have every Python program of this environment load ternary models: on, off, status",
    "env": "what is installed, and what computes",
}

# What the processes of a launcher do together, and prints once. Any other command is of one process.
PARALLEL = frozenset({"run", "quickstart", "warm-start", "pretrain", "distill", "evaluate"})
# A program of the user's, which knows itself what it does in each process.
_FOREIGN = frozenset({"exec"})

# Commands that were run in this process, by which the processes of a launcher know that they speak of the same one.
_COMMANDS = itertools.count()


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        [
            "usage: bitdistill COMMAND [OPTIONS]",
            "",
            *lines,
            "",
            "bitdistill COMMAND --help lists the options of a command.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status (0 done, 1 failed, 2 wrong usage)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        from .. import __version__

        print(__version__)
        return 0
    command = argv[0]
    if command not in COMMANDS:
        print(f"bitdistill: unknown command {command!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    return run_command(command, argv[1:], prog=f"bitdistill {command}")


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


if __name__ == "__main__":
    sys.exit(main())
