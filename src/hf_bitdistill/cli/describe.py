"""The spec of each command (`hf_bitdistill_cli.spec`), made from its parser."""

from __future__ import annotations

import importlib
import keyword
import types
from typing import Any

import transformers

from hf_bitdistill_cli import COMMANDS
from hf_bitdistill_cli.spec import Option, Section, Spec

from ..options.parser_spec import of_parser


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
    text = (module.__doc__ or "").strip()
    if formats := _formats(words):
        return Spec("formats", text, formats=formats)
    if hasattr(module, "USAGE"):
        return Spec("text", text, usage=module.USAGE)
    if hasattr(module, "typer_app"):
        from typer.main import get_command

        return _of_typer(get_command(module.typer_app()), text)
    return of_parser(module.make_parser(f"bitdistill {words}"))


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
