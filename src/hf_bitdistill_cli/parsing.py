"""A command's options as argparse reads and shows them, built from its spec: one look for all commands."""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import Any, NoReturn

from .spec import Option, Section, Spec


HELP_ALL = "--help_all"


def paragraphs(text: str, width: int) -> str:
    """A text with lines of at most so many characters, paragraph by paragraph."""
    each = (re.sub(r"\s+", " ", paragraph) for paragraph in text.strip().split("\n\n"))
    return "\n\n".join(textwrap.fill(paragraph, width) for paragraph in each)


class _Lines(argparse.HelpFormatter):
    """An option as it is written in the docs (`--max_steps N`)."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return str(action.metavar or action.dest)
        if action.nargs == 0:
            return ", ".join(action.option_strings)
        value = f"{action.metavar} ..." if action.nargs in ("+", "*") else action.metavar
        return f"{action.option_strings[0]} {value}"

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return paragraphs(text, width)


class SpecParser(argparse.ArgumentParser):
    """A parser of a spec. It checks names, choices, numbers and what is required; values that need more are the command's own to check."""

    def __init__(self, spec: Spec, prog: str):
        super().__init__(
            prog=prog,
            usage=None if spec.usage is None else f"{prog} {spec.usage}",
            description=spec.description,
            formatter_class=_Lines,
            allow_abbrev=spec.abbreviations,
            add_help=False,
        )
        self.spec, self.everything = spec, False
        self.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)
        if any(section.all_title for section in spec.sections):
            add_help_all(self)
        for option in spec.options():
            add(self, option)

    def format_help(self) -> str:
        formatter = self.formatter_class(prog=self.prog)
        formatter.add_usage(self.usage, [each for each in self._actions if each.help != argparse.SUPPRESS], [])
        formatter.add_text(self.description)
        actions = {action.dest: action for action in reversed(self._actions)}
        for section in self.spec.sections:
            title, options = shown(section, self.everything)
            formatter.start_section(title)
            formatter.add_arguments([actions[option.name] for option in options])
            formatter.end_section()
        return formatter.format_help()


def add_help_all(parser: argparse.ArgumentParser) -> None:
    """`--help_all`, of a parser that shows more in its help where it is told `everything`."""
    suppressed: dict[str, Any] = {"dest": argparse.SUPPRESS, "default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
    parser.add_argument(HELP_ALL, action=_HelpAll, nargs=0, **suppressed)


class _HelpAll(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> NoReturn:
        parser.everything = True
        parser.print_help()
        sys.exit(0)


def shown(section: Section, everything: bool = False) -> tuple[str, list[Option]]:
    """Title and options of a section in a help; an option with a second form (`--no_`) once."""
    first = list({option.name: option for option in reversed(section.options)}.values())[::-1]
    if section.all_title is None or everything:
        return section.all_title or section.title, first
    return section.title, sorted((each for each in first if each.usual is not None), key=lambda each: each.usual or 0)


def add(parser: argparse.ArgumentParser, option: Option) -> None:
    """Add an option to a parser."""
    text = option.text.replace("%", "%%")
    if option.default is not None and "default" not in text.lower():
        text = f"{text} (default: {option.default.replace('%', '%%')})".lstrip()
    about: dict[str, Any] = {"help": text, "action": option.action}
    if option.flags:
        about |= {"dest": option.name, "required": option.required}
    if option.action not in ("store_true", "store_false"):
        about |= {"choices": option.choices, "type": {"int": int, "float": float}.get(option.kind or "")}
        about["metavar"] = option.value
        if option.nargs is not None:
            about["nargs"] = option.nargs
    else:
        about["default"] = None
    parser.add_argument(*(option.flags or [option.name]), **about)


def help_of(spec: Spec, prog: str, everything: bool = False) -> str:
    """What `--help` prints, or `--help_all`."""
    parser = SpecParser(spec, prog)
    parser.everything = everything
    return parser.format_help()


def formats_help(spec: Spec, prog: str) -> str:
    """What a command with commands of its own says of them."""
    width = max(map(len, spec.formats))
    lines = [
        textwrap.fill(summary, _width(), initial_indent=f"  {name:<{width}}  ", subsequent_indent=" " * (width + 4))
        for name, summary in spec.formats.items()
    ]
    head = [f"usage: {prog} FORMAT ... [OPTIONS]", "", paragraphs(spec.description, _width()), ""]
    return "\n".join([*head, *lines, "", f"{prog} FORMAT --help lists the options of a format.\n"])


def text_help(spec: Spec, prog: str) -> str:
    """What a command without options says of itself."""
    return f"usage: {prog} {spec.usage}\n\n{paragraphs(spec.description, _width())}\n"


def _width() -> int:
    return shutil.get_terminal_size().columns - 2


def unknown_flag(spec: Spec, argv: Sequence[str]) -> str | None:
    """The first option that a command of transformers does not have."""
    known = {flag for option in spec.options() for flag in option.flags} | {"--help", "-h"}
    for word in argv:
        if word == "--":
            return None
        if word.startswith("--") and word.partition("=")[0] not in known:
            return word
    return None
