"""Whether there is a place to write to, and room in it: told before hours of work, not after."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from torch import nn


def check_writable(path: str | os.PathLike, is_file: bool = False) -> None:
    """Refuse a folder (or a file) that cannot be written. Nothing is made.

    Args:
        path: it may not exist yet, nor may the folders above it.
        is_file: `path` is to become a file.

    Raises:
        OSError: a file stands where a folder should, or the reverse; no permission; a read-only file system; no room.
    """
    path = Path(path).expanduser()
    if is_file and path.is_dir():
        raise IsADirectoryError(f"cannot write the file {path}: it is a folder")
    folder = _existing(path.parent if is_file else path)
    if not folder.is_dir():
        raise NotADirectoryError(f"cannot write to {path}: {folder} is a file, not a folder")
    if is_file and path.exists():
        if not os.access(path, os.W_OK):
            raise PermissionError(f"cannot write the file {path}: permission denied")
        if not path.is_file():
            return  # /dev/stdout and the like
    try:
        with tempfile.TemporaryFile(dir=folder, prefix="_bitdistill.tmp-", buffering=0) as probe:
            probe.write(b"\0" * 4096)
    except OSError as error:
        raise type(error)(f"cannot write to {path}: {error.strerror or error}") from error


def check_room(folder: str | os.PathLike, needs: Mapping[str, int]) -> None:
    """Refuse a folder on a disk with too little free space.

    Args:
        folder: it may not exist yet.
        needs: what will be written, and its size in bytes.

    Raises:
        OSError: there is less room than `needs` add up to.
    """
    free = shutil.disk_usage(_existing(Path(folder).expanduser())).free
    needed = sum(needs.values())
    if needed > free:
        parts = ", ".join(f"{name} {size_text(size)}" for name, size in needs.items() if size)
        raise OSError(
            f"{folder} has {size_text(free)} of free space and about {size_text(needed)} will be needed ({parts}): make "
            "room, or give another folder"
        )


def parameter_bytes(model: nn.Module, trainable_only: bool = False) -> int:
    """Size of a model's parameters, shards on other devices included; shared ones count once."""
    return sum(
        getattr(parameter, "ds_numel", parameter.numel()) * parameter.element_size()
        for parameter in model.parameters()
        if parameter.requires_grad or not trainable_only
    )


def size_text(size: float) -> str:
    """A number of bytes for people: `"1.4 GB"`."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def _existing(path: Path) -> Path:
    """The path itself or the nearest one above it that exists."""
    path = Path(os.path.abspath(path))
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
