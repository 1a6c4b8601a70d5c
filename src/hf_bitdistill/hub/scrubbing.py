"""What no upload holds: paths of this machine, and secrets."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import get_token

from ..files.redaction import HUB_TOKEN, HUB_TOKEN_PREFIXES, redact_text


_END = r"[^\s\"'<>|,;:)\]`]*"
# An absolute path of two names or more. (No part of an address, of a fraction, of another path.)
_ABSOLUTE = re.compile(r"(?<![\w/.:+\\-])/(?P<root>[\w.@+-]+)(?:/[\w.@+-]+)+")

# What a model is given to read, letter by letter.
_WORDED = ("chat_template", "added_tokens_decoder")
_ANY_TOKEN, _BEGINNINGS = re.compile(HUB_TOKEN.pattern.encode()), tuple(each.encode() for each in HUB_TOKEN_PREFIXES)
# Longer than any token has to be to be told as one.
_OVERLAP = 64


def known_secrets(*tokens: str | bool | None) -> set[str]:
    """The tokens of the Hub that this process was given."""
    given = {*tokens, get_token(), os.environ.get("HF_TOKEN"), os.environ.get("HUGGING_FACE_HUB_TOKEN")}
    return {each.strip() for each in given if isinstance(each, str) and len(each.strip()) >= 8}


def scrub(text: str, secrets: set[str], folders: Iterable[str | os.PathLike] = ()) -> str:
    """A text in which a local path is its last name, and no secret is left.

    Args:
        folders: whose paths are told in whatever form they have; others are if their first name is a folder of this machine.
    """
    roots = {os.path.abspath(Path(folder).expanduser()) for folder in (*folders, Path.home(), os.getcwd())}
    for root in sorted(roots - {os.sep}, key=len, reverse=True):
        text = re.sub(rf"(?<![\w/.:-]){re.escape(root)}(?:/{_END})?(?![\w-])", _last_name, text)
    text = _ABSOLUTE.sub(lambda match: _last_name(match) if os.path.isdir(f"/{match['root']}") else match[0], text)
    return redact_text(text, secrets)


def scrub_values(values: Any, secrets: set[str], folders: Iterable[str | os.PathLike] = ()) -> Any:
    """A copy of what a JSON file holds, with its strings as [`scrub`] leaves them; chat templates and tokens stay as they are.

    A string that is a path as a whole is its last name, also where folders above it have spaces in their names.
    """
    if isinstance(values, str):
        parts = Path(values).parts
        whole = len(parts) > 2 and os.path.isabs(values) and "\n" not in values and os.path.isdir(Path(*parts[:2]))
        return scrub(parts[-1] if whole else values, secrets, folders)
    if isinstance(values, Mapping):
        return {
            name: value if name in _WORDED else scrub_values(value, secrets, folders) for name, value in values.items()
        }
    if isinstance(values, list):
        return [scrub_values(value, secrets, folders) for value in values]
    return values


def _last_name(match: re.Match) -> str:
    return Path(match[0]).name


def check_no_secret(name: str, content: Path | bytes, secrets: set[str]) -> None:
    """Refuse a file that is uploaded as it is and holds a secret: one that is known, or whatever looks like a token of the Hub.

    Raises:
        ValueError: naming the file.
    """
    needles = [secret.encode() for secret in secrets]
    for part in _parts(content, max([_OVERLAP, *map(len, needles)])):
        if any(needle in part for needle in needles):
            raise ValueError(
                f"{name} holds the token of the Hub that this process uses: nothing was uploaded. Take it out of the file."
            )
        # (Weights are large, and a fixed string is found many times as fast as a pattern.)
        if any(beginning in part for beginning in _BEGINNINGS) and _ANY_TOKEN.search(part):
            raise ValueError(
                f"{name} holds what looks like a token of the Hub (hf_...): nothing was uploaded. Take it out of the file; if it is a real "
                "one that others may have seen, revoke it in the settings of its account."
            )


def _parts(content: Path | bytes, overlap: int) -> Iterable[bytes]:
    """Pieces of a file, each with the end of the one before, so that nothing is cut in two."""
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb") as reader:
        tail = b""
        while piece := reader.read(1 << 22):
            yield tail + piece
            tail = piece[-overlap:] if overlap else b""
