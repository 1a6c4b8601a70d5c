"""What can be said of a command line before anything heavy is imported: help, and refusals of what is no option or is missing."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from .option_file import unknown_option, with_file
from .parsing import SpecParser, formats_help, help_of, text_help, unknown_flag
from .spec import Spec, load


_HELP = ("-h", "--help")


def answer(command: str, argv: Sequence[str], prog: str) -> int | None:
    """Answer a command line that asks for help or cannot be run; `None` where the command is to be run.

    Under a launcher nothing is answered here: of its processes only one is to speak, which the command knows.

    Raises:
        SystemExit: after a help (0), and where argparse refuses (2).
    """
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        return None
    spec = load(command)
    if spec is None:
        return None
    if spec.style == "formats":
        return _of_formats(command, spec, argv, prog)
    if spec.style == "text":
        if argv and argv[0] in _HELP:
            print(text_help(spec, prog), end="")
            return 0
        return None
    if spec.style == "transformers":
        if any(word in _HELP for word in argv):
            print(help_of(spec, prog), end="")
            return 0
        unknown = unknown_flag(spec, argv)
        names = [flag.removeprefix("--") for option in spec.options() for flag in option.flags]
        return None if unknown is None else _refuse(prog, unknown_option(unknown, names))
    parser = SpecParser(spec, prog)
    if spec.style == "arguments":
        parser.parse_args(list(argv))
        return None
    return _of_fields(spec, parser, argv, prog)


def _of_fields(spec: Spec, parser: SpecParser, argv: Sequence[str], prog: str) -> int | None:
    names = list(dict.fromkeys(option.name for option in spec.options()))
    try:
        flags = with_file(argv, names, spec.model_first)
    except (OSError, ValueError) as error:
        return _refuse(prog, " ".join(str(error).split()))
    given, rest = parser.parse_known_args(flags)
    if rest:
        return _refuse(prog, unknown_option(rest[0], names))
    if any(getattr(given, name) is not None for name in spec.required_unless):
        return None
    for names in (each.split(" or ") for each in spec.required):
        if all(getattr(given, name) is None for name in names):
            return _refuse(prog, f"{' or '.join(f'--{name}' for name in names)} is required")
    return None


def _of_formats(command: str, spec: Spec, argv: Sequence[str], prog: str) -> int | None:
    name = argv[0] if argv else None
    if name in (None, *_HELP):
        print(formats_help(spec, prog), end="")
        return 0 if name else _refuse(prog, f"name a format: {', '.join(spec.formats)}")
    if name not in spec.formats:
        return _refuse(prog, f"unknown format {name!r}; there are {', '.join(spec.formats)}")
    return answer(f"{command} {name}", argv[1:], f"{prog} {name}")


def _refuse(prog: str, message: str) -> int:
    print(f"{prog}: error: {message}", file=sys.stderr)
    return 1
