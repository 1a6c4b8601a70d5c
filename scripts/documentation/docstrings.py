"""An extension of Griffe: names in docstrings are written [`name`], as in transformers' documentation; on the site they are code."""

from __future__ import annotations

import re

from griffe import Extension


_NAME = re.compile(r"\[`~?(?P<name>[^`\]]+)`\](?![(\[])")


def plain_names(text: str) -> str:
    """A docstring without the brackets; of a dotted name the last part is shown."""
    return _NAME.sub(lambda match: f"`{match['name'].rpartition('.')[2]}`", text)


class PlainNames(Extension):
    """Applies [`plain_names`] to every docstring."""

    def on_object(self, *, obj, **_) -> None:
        if obj.docstring:
            obj.docstring.value = plain_names(obj.docstring.value)
