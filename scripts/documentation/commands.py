"""The page of the command line, from the parsers of the commands."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import re
from unittest import mock

from transformers import TrainingArguments

import hf_bitdistill_cli as commands
from hf_bitdistill.cli.export import FORMATS as EXPORTS
from hf_bitdistill.cli.import_ import FORMATS as IMPORTS
from hf_bitdistill.report.tables import markdown_table


_TRAINING = {field.name for field in dataclasses.fields(TrainingArguments)}
_WITHOUT_PARSER = {
    "serve": "Takes the options of `transformers serve`, and `--kv-bits`.",
    "chat": "Takes the options of `transformers chat`, and `--kv-bits`.",
}


def parser_of(words: list[str]) -> argparse.ArgumentParser | None:
    """The parser that answers `bitdistill WORDS --help`; `None` where the answer is not that of one."""
    found: list[argparse.ArgumentParser] = []
    with (
        mock.patch.object(argparse.ArgumentParser, "print_help", lambda self, file=None: found.append(self)),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        contextlib.suppress(SystemExit),
    ):
        commands.main([*words, "--help"])
    return found[0] if found else None


def command_lines() -> list[list[str]]:
    """Every command, those with commands of their own by each of these."""
    kinds = {"export": EXPORTS, "import": IMPORTS}
    return [
        [command, *kind] for command in commands.COMMANDS for kind in ([[k] for k in kinds.get(command, ())] or [[]])
    ]


def page() -> str:
    """The whole page in Markdown."""
    parts = [
        "# Command line",
        "Made from the commands themselves. `bitdistill COMMAND --help` shows the same in the terminal; `optimum-cli bitnet COMMAND` and "
        "`python -m hf_bitdistill COMMAND` run the same commands.",
        markdown_table(
            ["command", "does"],
            [[f"[`{name}`](#bitdistill-{name})", _plain(summary)] for name, summary in commands.COMMANDS.items()],
        ),
    ]
    for words in command_lines():
        parts.append(f"## bitdistill {' '.join(words)} {{ #bitdistill-{'-'.join(words)} }}")
        if len(words) == 2 and words[1] == next(iter({"export": EXPORTS, "import": IMPORTS}[words[0]])):
            parts[-1] = f"<a id='bitdistill-{words[0]}'></a>\n\n{parts[-1]}"
        parser = parser_of(words)
        parts += [_plain(_WITHOUT_PARSER.get(words[0], ""))] if parser is None else _section(parser)
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(parser: argparse.ArgumentParser) -> list[str]:
    actions = [action for action in parser._actions if not isinstance(action, argparse._HelpAction)]
    subcommands = [action for action in actions if isinstance(action, argparse._SubParsersAction)]
    own, of_training = [], 0
    for action in actions:
        if action in subcommands or action.help is argparse.SUPPRESS:
            continue
        if {action.dest} <= _TRAINING and len(_TRAINING & {a.dest for a in actions}) > 50:
            of_training += 1
            continue
        own.append([_names(action), _help(action, parser), _default(action)])
    text = [_plain(" ".join((parser.description or "").split()))]
    if own:
        text.append(markdown_table(["option", "", "default"], own))
    if of_training:
        text.append(f"And every option of transformers' `TrainingArguments` ({of_training}).")
    return text


def _names(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"`{action.metavar or action.dest}`"
    # (HfArgumentParser has each name twice, with `_` and with `-`.)
    names = [n for n in action.option_strings if n == n.replace("-", "_").replace("__", "--", 1)]
    choices = f" {{{','.join(map(str, action.choices))}}}" if action.choices else ""
    return ", ".join(f"`{name}{choices}`" for name in names or action.option_strings)


def _help(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    text = parser._get_formatter()._expand_help(action) if action.help else ""
    return _plain(re.sub(r"\s*\(default: [^)]*\)$", "", " ".join(text.split())))


def _default(action: argparse.Action) -> str:
    if action.default in (None, argparse.SUPPRESS, "", []) or not action.option_strings:
        return ""
    return f"`{action.default}`"


def _plain(text: str) -> str:
    # Words in capitals and options are code; what Markdown or HTML would take for its own is escaped.
    return text.replace("<", "&lt;").replace("|", "\\|").replace("*", "\\*").replace("{", "&#123;")
