"""The spec of each command (`hf_bitdistill_cli.spec`), made from its parser."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import inspect
import keyword
import re
import types
from typing import Any

import transformers
from transformers import TrainingArguments

from hf_bitdistill_cli import COMMANDS
from hf_bitdistill_cli.spec import Option, Section, Spec

from .options_parser import USUAL, OptionsParser


def commands() -> list[str]:
    """Every command as it is typed, and after one with commands of its own each of these."""
    return [words for command in COMMANDS for words in (command, *(f"{command} {name}" for name in _formats(command)))]


def _formats(command: str) -> dict[str, str]:
    return getattr(_module(command), "FORMATS", {})


def _module(words: str) -> types.ModuleType:
    name = words.replace("-", "_").replace(" ", "_")
    return importlib.import_module(f".{name}_" if keyword.iskeyword(name) else f".{name}", __package__)


def describe(words: str) -> Spec:
    """The spec of a command.

    Args:
        words: as they are typed, `export gguf`.
    """
    module = _module(words)
    if formats := _formats(words):
        return Spec("formats", module.__doc__.strip(), formats=formats)
    if hasattr(module, "USAGE"):
        return Spec("text", module.__doc__.strip(), usage=module.USAGE)
    if hasattr(module, "typer_app"):
        from typer.main import get_command

        return _of_typer(get_command(module.typer_app()), module.__doc__)
    return of_parser(module.make_parser(f"bitdistill {words}"))


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
    kind = {int: "int", float: "float"}.get(action.type)  # type: ignore[call-overload]
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
        nargs=None if plain else action.nargs,  # type: ignore[arg-type]
        choices=choices,
        kind=kind,
        required=bool(action.option_strings) and action.required,
        action="store_true" if plain else "append" if isinstance(action, argparse._AppendAction) else "store",
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


def _of_typer(command: Any, text: str) -> Spec:
    """Of a command of transformers' command line."""
    words, options = [], []
    for each in command.params:
        about = " ".join((each.help or "").split())
        if not each.opts[0].startswith("-"):
            words.append(Option([], each.name, about, value=each.name, required=each.required))
        elif not each.hidden:
            kind = {int: "int", float: "float"}.get(type(each.default))
            value = None if each.is_flag else {"int": "N", "float": "X"}.get(kind or "", "VALUE")
            shown = None if each.is_flag or each.default is None or callable(each.default) else str(each.default)
            action = "store_true" if each.is_flag else "store"
            flags = [*each.opts, *each.secondary_opts]
            options.append(Option(flags, each.name, about, value, kind=kind, action=action, default=shown))
    named = [word.name.upper() if word.required else f"[{word.name.upper()}]" for word in words]
    return Spec(
        "transformers",
        text.strip(),
        usage=" ".join([*named, "[--OPTION VALUE ...]"]),
        sections=[each for each in (Section("arguments", words), Section("options", options)) if each.options],
        transformers=transformers.__version__,
    )
