"""JSON files of a checkpoint: read with errors that name the file; an index leads nowhere outside its folder."""

from __future__ import annotations

import json
import os
import reprlib
from pathlib import Path
from typing import Any

from .tensor_headers import CheckpointError, check_regular


def shorten(value: Any) -> str:
    """A value for a message, however long it is."""
    return reprlib.repr(value)


def read_json(file: Path) -> dict[str, Any]:
    """A file that holds one JSON object.

    Raises:
        CheckpointError: naming the file and what is wrong with it.
    """
    check_regular(file)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except RecursionError:
        raise CheckpointError(f"{file}: not usable: its JSON is nested too deeply.") from None
    except ValueError as error:  # (undecodable bytes, and integers of thousands of digits, among them)
        raise CheckpointError(f"{file}: not valid JSON ({error}).") from None
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror}).") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: holds no JSON object, but {shorten(content)}.")
    return content


def read_index(index: Path) -> list[Path]:
    """The shards that an index names.

    Raises:
        CheckpointError: it is no index, or names a file outside its folder; names file and entry.
    """
    content = read_json(index)
    for key in ("weight_map", "metadata"):
        if not isinstance(content.get(key), dict):
            found = shorten(content[key]) if key in content else "nothing"
            raise CheckpointError(f"{index}: {key!r} must be an object, not {found}.")
    shards = {}
    for tensor, name in content["weight_map"].items():
        if not isinstance(name, str) or name not in shards:
            shards[name] = _inside(index, tensor, name)
    if not shards:
        raise CheckpointError(f"{index}: 'weight_map' is empty.")
    return sorted(shards.values())


def _inside(index: Path, tensor: str, name: Any) -> Path:
    problem = f"{index}: weight_map[{tensor!r}] is {shorten(name)}"
    if not _is_name(name) or os.path.normpath(name) == os.curdir:
        raise CheckpointError(f"{problem}; it must be the name of a file.")
    normal = os.path.normpath(name)
    if os.path.isabs(name) or normal == os.pardir or normal.startswith(os.pardir + os.sep):
        raise CheckpointError(f"{problem}, which is outside the folder.")
    check_linked_inside(index.parent / name, index.parent)
    return index.parent / name


def _is_name(name: Any) -> bool:
    """Whether a file system may have a file `name`."""
    try:
        parts = os.fsencode(name).split(os.fsencode(os.sep))
    except (TypeError, UnicodeEncodeError):
        return False
    return bool(name) and "\0" not in name and all(len(part) <= 255 for part in parts)


def check_linked_inside(file: Path, folder: Path) -> None:
    """Refuse a symbolic link out of `folder`, except into the blobs of a Hub cache.

    Raises:
        CheckpointError: naming the link and its target.
    """
    target, root = Path(os.path.realpath(file)), Path(os.path.realpath(folder))
    blob = target.parent.name == "blobs" and target.parent.parent.name.startswith("models--")
    if not target.is_relative_to(root) and not blob:
        raise CheckpointError(
            f"{file}: leads out of the folder, to {target}. Copy the file, or give a folder that holds it."
        )
