"""The page of the command line, from the specs of the commands."""

from __future__ import annotations

import re

from hf_bitdistill.pages.tables import markdown_table
from hf_bitdistill_cli import COMMANDS
from hf_bitdistill_cli.parsing import shown
from hf_bitdistill_cli.spec import Option, Spec, file_of


_OF_TRANSFORMERS = {
    "serve": "Takes the options of `transformers serve`, and `--kv-bits`.",
    "chat": "Takes the options of `transformers chat`, and `--kv-bits`.",
}


def spec_of(words: list[str]) -> Spec:
    """The spec of a command, of whatever version of transformers."""
    return Spec.from_json(file_of(" ".join(words)).read_text(encoding="utf-8"))


def command_lines() -> list[list[str]]:
    """Every command, those with commands of their own by each of these."""
    return [[command, *kind] for command in COMMANDS for kind in ([[k] for k in spec_of([command]).formats] or [[]])]


def page() -> str:
    """The whole page in Markdown."""
    parts = [
        "# Command line",
        "Made from the commands themselves. `bitdistill COMMAND --help` shows the same in the terminal; `optimum-cli bitnet COMMAND` and "
        "`python -m hf_bitdistill COMMAND` run the same commands. `bitdistill -v COMMAND` also shows notices and bars of the libraries.",
        markdown_table(
            ["command", "does"],
            [[f"[`{name}`](#bitdistill-{name})", _plain(summary)] for name, summary in COMMANDS.items()],
        ),
    ]
    for words in command_lines():
        parts.append(f"## bitdistill {' '.join(words)} {{ #bitdistill-{'-'.join(words)} }}")
        if len(words) == 2 and words[1] == next(iter(spec_of(words[:1]).formats)):
            parts[-1] = f"<a id='bitdistill-{words[0]}'></a>\n\n{parts[-1]}"
        if words[0] in _OF_TRANSFORMERS:
            parts.append(_plain(_OF_TRANSFORMERS[words[0]]))
        else:
            parts += _section(spec_of(words))
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(spec: Spec) -> list[str]:
    own = [section for section in spec.sections if section.all_title is None]
    rows = [[_names(each), _help(each), _default(each)] for section in own for each in shown(section)[1]]
    text = [_plain(re.sub(r"\s*\n(?!\n)\s*", " ", paragraph)) for paragraph in spec.description.split("\n\n")]
    if rows:
        text.append(markdown_table(["option", "", "default"], rows))
    for section in spec.sections:
        if section.all_title is not None:
            count = len(shown(section, everything=True)[1])
            text.append(f"And every option of transformers' `TrainingArguments` ({count}).")
    return text


def _names(option: Option) -> str:
    if not option.flags:
        return f"`{option.value}`"
    # (HfArgumentParser has each name twice, with `_` and with `-`.)
    names = [n for n in option.flags if n == n.replace("-", "_").replace("__", "--", 1)] or option.flags
    choices = f" {{{','.join(map(str, option.choices))}}}" if option.choices else ""
    return ", ".join(f"`{name}{choices}`" for name in names)


def _help(option: Option) -> str:
    return _plain(re.sub(r"\s*\(default: [^)]*\)$", "", option.text))


def _default(option: Option) -> str:
    return "" if option.default is None or not option.flags else f"`{option.default}`"


def _plain(text: str) -> str:
    # Words in capitals and options are code; what Markdown or HTML would take for its own is escaped.
    return text.replace("<", "&lt;").replace("|", "\\|").replace("*", "\\*").replace("{", "&#123;")
