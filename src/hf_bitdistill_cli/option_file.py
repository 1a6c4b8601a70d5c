"""Options from a YAML file, as the flags that say the same, and what is said of a name that is no option."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from pathlib import Path


def with_file(argv: Sequence[str], options: Sequence[str], model_first: bool = False) -> list[str]:
    """A command line whose first word may be a file of options: as flags, what the file says is converted and checked like a flag, and a
    later flag wins.

    Args:
        options: the names that there are.
        model_first: a first word that is no YAML file is the model.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is not a YAML mapping, or names an unknown option.
    """
    argv = list(argv)
    if argv and not argv[0].startswith("-"):
        if model_first and not argv[0].endswith((".yaml", ".yml")):
            return ["--model_name_or_path", *argv]
        argv = _flags(argv.pop(0), options) + argv
    return argv


def unknown_option(name: str, options: Sequence[str]) -> str:
    """That a name is no option, and which one may have been meant."""
    # Without its value, which may be a secret.
    name = name.partition("=")[0]
    close = difflib.get_close_matches(name.lstrip("-"), options, n=1)
    return f"unknown option {name!r}" + (f"; did you mean {close[0]!r}?" if close else "")


def _flags(path: str, options: Sequence[str]) -> list[str]:
    import yaml

    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"there is no configuration file {path}")
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must map options to values")
    flags = []
    for name, value in values.items():
        if name not in options:
            raise ValueError(f"{path}: {unknown_option(str(name), options)}")
        if isinstance(value, list):
            flags += [f"--{name}", *map(str, value)]
        elif value is not None:
            flags.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
    return flags
