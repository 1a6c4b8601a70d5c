"""What a command takes, as data: `specs/` holds a file a command, made from the real parsers (`hf_bitdistill.cli.describe`).

The door reads these in place of the parsers, which need torch. Options of transformers' own are those of one version: where another one is
installed, the parsers themselves answer.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any


SPECS = Path(__file__).parent / "specs"


@dataclass
class Option:
    """An option, or a word of the command line where it has no flags.

    Attributes:
        flags: its names, the usual one first.
        name: under which its value is kept.
        value: what stands for the value in a help.
        nargs: as of argparse.
        kind: `int` or `float`; other values are checked by the command itself.
        action: as of argparse; `store` takes a value.
        default: as it is shown.
        usual: its place among those of a training that the short help lists; `None`: it is listed where it stands, or, in a section with
            `all_title`, not at all.
    """

    flags: list[str]
    name: str
    text: str = ""
    value: str | None = None
    nargs: str | None = None
    choices: list[Any] | None = None
    kind: str | None = None
    required: bool = False
    action: str = "store"
    default: str | None = None
    usual: int | None = None


@dataclass
class Section:
    """Options under a title.

    Attributes:
        all_title: of the section in a help with everything, where the short help lists a part.
    """

    title: str
    options: list[Option]
    all_title: str | None = None


@dataclass
class Spec:
    """A command.

    Attributes:
        style: how its command line is read. `arguments`: argparse. `fields`: argparse too, with a file of options as first word.
            `transformers`: by transformers' own command. `formats`: the first word is a command of its own. `text`: as it likes.
        usage: after the command's name; `None`: argparse's.
        abbreviations: whether the beginning of a flag is enough.
        model_first: a first word that is no YAML file is the model.
        required: options of `fields` that must be given; of `a or b` one.
        required_unless: options with which others are required, which the command knows.
        formats: name -> summary.
        transformers: the version whose options are among these.
    """

    style: str
    description: str
    usage: str | None = None
    abbreviations: bool = True
    model_first: bool = False
    required: list[str] = field(default_factory=list)
    required_unless: list[str] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)
    formats: dict[str, str] = field(default_factory=dict)
    transformers: str | None = None

    def options(self) -> list[Option]:
        return [option for section in self.sections for option in section.options]

    def to_json(self) -> str:
        """A line a section's head and a line an option."""
        head = _given(self)
        sections = head.pop("sections", [])
        lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in head.items()]
        if sections:
            lines.append('"sections": [\n' + ",\n".join(map(_section_text, self.sections)) + "\n]")
        return "{\n" + ",\n".join(lines) + "\n}\n"

    @classmethod
    def from_json(cls, text: str) -> Spec:
        values = json.loads(text)
        sections = [
            Section(**{**each, "options": [Option(**option) for option in each["options"]]})
            for each in values.pop("sections", [])
        ]
        return cls(**values, sections=sections)


def _section_text(section: Section) -> str:
    head = _given(section)
    del head["options"]
    head["options"] = []  # (last, and each on a line of its own)
    return json.dumps(head)[:-2] + "\n" + ",\n".join(json.dumps(_given(option)) for option in section.options) + "\n]}"


def _given(instance: Any) -> dict[str, Any]:
    """The fields that differ from their defaults."""
    blank = {each.name: each.default_factory() if callable(each.default_factory) else each.default for each in fields(instance)}  # fmt: skip
    return {name: value for name, value in asdict(instance).items() if value != blank[name]}


def file_of(words: str) -> Path:
    """Of `export gguf`: the file with its spec."""
    return SPECS / f"{words.replace(' ', '_').replace('-', '_')}.json"


def load(words: str) -> Spec | None:
    """The spec of a command; `None` where it is not that of what is installed.

    Args:
        words: as they are typed, `export gguf`.
    """
    file = file_of(words)
    if not file.is_file():
        return None
    spec = Spec.from_json(file.read_text(encoding="utf-8"))
    return spec if spec.transformers in (None, _transformers()) else None


def _transformers() -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("transformers")
    except PackageNotFoundError:
        return None
