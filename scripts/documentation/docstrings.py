"""An extension of Griffe for two habits of transformers' documentation: names written [`name`], and types of arguments written as code."""

from __future__ import annotations

import re

from griffe import Extension


_NAME = re.compile(r"\[`~?(?P<name>[^`\]]+)`\](?![(\[])")


_TYPE = re.compile(r"^(?P<name>\s+\w+) \((?P<type>[^()]*(?:\([^()]*\)[^()]*)*)\):", re.MULTILINE)


def plain_types(text: str) -> str:
    """`size (`int`, *optional*):` as `size (int, optional):`, which the site shows as code by itself."""
    return _TYPE.sub(lambda m: f"{m['name']} ({m['type'].replace('`', '').replace('*', '')}):", text)


def plain_names(text: str) -> str:
    """A docstring without the brackets; of a dotted name the last part is shown."""
    return _NAME.sub(lambda match: f"`{match['name'].rpartition('.')[2]}`", text)


class PlainNames(Extension):
    """Applies both to every docstring."""

    def on_object(self, *, obj, **_) -> None:
        if obj.docstring:
            obj.docstring.value = plain_types(plain_names(obj.docstring.value))
