"""The spec (`hf_bitdistill_cli.spec`) of a parser."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
from typing import Any

import transformers
from transformers import TrainingArguments

from hf_bitdistill_cli.spec import Option, Section, Spec

from .options_parser import USUAL, OptionsParser


# What argparse makes of `action="append"`, for which it has no public name.
_APPENDING = type(argparse.ArgumentParser().add_argument("--each", action="append"))


def of_parser(parser: argparse.ArgumentParser) -> Spec:
    """The spec of a parser."""
    if isinstance(parser, OptionsParser):
        return _of_fields(parser)
    named = [action for action in parser._actions if action.help != argparse.SUPPRESS and action.dest != "help"]
    positional = [_option(action) for action in named if not action.option_strings]
    optional = [_option(action) for action in named if action.option_strings]
    sections = [Section("arguments", positional), Section("options", optional)]
    return Spec(
        "arguments",
        parser.description or "",
        abbreviations=parser.allow_abbrev,
        sections=[section for section in sections if section.options],
    )


def _of_fields(parser: OptionsParser) -> Spec:
    stock = any(issubclass(kind, TrainingArguments) for kind in parser.dataclass_types)
    return Spec(
        "fields",
        parser.description or "",
        usage=f"[{parser.first}] [--OPTION VALUE ...]",
        abbreviations=False,
        model_first=parser.model_first,
        required=parser.required,
        required_unless=parser.required_unless,
        sections=[section for kind in parser.dataclass_types for section in _sections(parser, kind)],
        transformers=transformers.__version__ if stock else None,
    )


def _sections(parser: OptionsParser, kind: type) -> list[Section]:
    """A dataclass: its own options before those that it inherits."""
    names: dict[type, list[str]] = {}
    for field in dataclasses.fields(kind):
        # (A subclass may change a default: the option belongs to where it comes from.)
        owner = [base for base in kind.__mro__ if field.name in inspect.get_annotations(base)][-1]
        names.setdefault(owner, []).append(field.name)
    return [_section(parser, owner, set(names[owner])) for owner in kind.__mro__ if owner in names]


def _section(parser: OptionsParser, owner: type, names: set[str]) -> Section:
    options = [_option(action, with_default=True) for action in parser._actions if action.dest in names]
    if owner is not TrainingArguments:
        first = re.split(r"[.:](?:\s|$)", " ".join((owner.__doc__ or "").split()))[0]
        return Section(re.sub(r"\[?`(\w+)`\]?", r"\1", first), options)
    for option in options:
        option.usual = USUAL.index(option.name) if option.name in USUAL else None
    rest = len(names - set(USUAL))
    return Section(
        f"Training, as transformers' TrainingArguments; --help_all lists the other {rest}",
        options,
        all_title="Training, all of transformers' TrainingArguments",
    )


def _option(action: argparse.Action, with_default: bool = False) -> Option:
    text = " ".join((action.help or "").split())
    kind = {int: "int", float: "float"}.get(action.type)  # type: ignore[call-overload]  # argparse takes any callable as a type
    choices = None
    if action.choices is not None:
        choices = [getattr(choice, "value", choice) for choice in action.choices]
        if not all(isinstance(choice, str) for choice in choices) and kind is None:
            kind = "float"  # (as a number, which a function of the command's reads)
    plain = action.nargs == 0
    return Option(
        flags=list(action.option_strings),
        name=action.dest,
        text=text.replace("%%", "%"),
        value=None if plain else _value(action, choices, kind),
        nargs=None if plain else action.nargs,  # type: ignore[arg-type]  # argparse accepts None
        choices=choices,
        kind=kind,
        required=bool(action.option_strings) and action.required,
        action="store_true" if plain else "append" if isinstance(action, _APPENDING) else "store",
        default=_default(action) if with_default or "%(default)" not in text else None,
    )


def _value(action: argparse.Action, choices: list[Any] | None, kind: str | None) -> str:
    """What stands for an option's value."""
    if isinstance(action.metavar, str):
        return action.metavar
    if choices:
        # (An enumeration of transformers' has many names.)
        names = list(map(str, choices))
        return "{" + ",".join(names) + "}" if len(names) < 8 else names[0] + "|..."
    if not action.option_strings:
        return action.dest
    if isinstance(action.default, bool):
        return "true|false"
    return {"int": "N", "float": "X"}.get(kind or "", "VALUE")


def _default(action: argparse.Action) -> str | None:
    default = action.default
    if default in (None, argparse.SUPPRESS, dataclasses.MISSING, "", []) or not action.option_strings:
        return None
    if action.nargs == 0:
        return None
    shown = str(getattr(default, "value", default))
    return shown.lower() if isinstance(default, bool) else shown
