"""What no upload holds: paths of this machine, and secrets."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import get_token

from ..files.redaction import redact_text


_END = r"[^\s\"'<>|,;:)\]`]*"
# An absolute path of two names or more. (No part of an address, of a fraction, of another path.)
_ABSOLUTE = re.compile(r"(?<![\w/.:+\\-])/(?P<root>[\w.@+-]+)(?:/[\w.@+-]+)+")


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


def _last_name(match: re.Match) -> str:
    return Path(match[0]).name


def check_no_secret(name: str, content: Path | bytes, secrets: set[str]) -> None:
    """Refuse a file that is uploaded as it is and holds a secret.

    Raises:
        ValueError: naming the file.
    """
    needles = [secret.encode() for secret in secrets]
    if any(needle in part for part in _parts(content, max(map(len, needles), default=0)) for needle in needles):
        raise ValueError(
            f"{name} holds the token of the Hub that this process uses: nothing was uploaded. Take it out of the file."
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
