"""Runs a command of `bitdistill` and turns expected failures into one line. The list of commands is in `hf_bitdistill_cli`."""

from __future__ import annotations

import importlib
import keyword
import os
import sys
from collections.abc import Callable, Sequence

from hf_bitdistill_cli import CLOSED_PIPE, main, output_is_gone


def run_command(command: str, argv: Sequence[str], prog: str) -> int:
    """Run one command with its own arguments. `prog` is how its messages call it."""
    name = command.replace("-", "_")
    module = importlib.import_module(f".{name}_" if keyword.iskeyword(name) else f".{name}", __package__)
    return explain_errors(lambda: module.run(list(argv), prog), prog)


def explain_errors(run: Callable[[], None], prog: str) -> int:
    """Run something; what a user can cause becomes one line on stderr. Returns the exit status."""
    from huggingface_hub.errors import HTTPError
    from safetensors import SafetensorError

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
    ) as error:
        # What a user can cause: a bad path or option, a damaged file, models that do not fit. Anything else is a bug
        # and keeps its traceback.
        if os.environ.get("BITDISTILL_TRACEBACK"):
            raise
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"{prog}: error: {message} (BITDISTILL_TRACEBACK=1 shows where)", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return 130
    return 0


__all__ = ["explain_errors", "main", "run_command"]

if __name__ == "__main__":
    sys.exit(main())
