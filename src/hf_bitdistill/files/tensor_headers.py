"""What the headers of safetensors files say, and the error of every damaged file of a checkpoint."""

from __future__ import annotations

import json
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open


class CheckpointError(ValueError):
    """A checkpoint file is damaged, incomplete, or does not fit the model."""


@dataclass(frozen=True)
class TensorHeader:
    """What a safetensors header says of one tensor, and whether transformers makes another tensor of it while loading."""

    file: str
    key: str
    dtype: str
    shape: tuple[int, ...]
    converted: bool = False


def check_regular(file: str | Path) -> None:
    """Refuse what is no regular file before it is opened: reading a FIFO or a device may never end.

    Raises:
        CheckpointError: naming the file and what it is.
    """
    try:
        mode = os.stat(file).st_mode
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror}).") from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a FIFO, a socket or a device"
        raise CheckpointError(f"{file}: is {kind}, not a regular file.")


def read_header(file: str | Path) -> tuple[dict[str, Any], int]:
    """All that the header of a file says which can be read as safetensors, and the byte behind it, from which its offsets count."""
    with open(file, "rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        return json.loads(stream.read(length)), 8 + length


def tensors_of(file: str | Path) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Name, dtype and shape of each tensor that the header of a safetensors file describes.

    Raises:
        CheckpointError: it cannot be read as safetensors (truncated, not safetensors, no regular file).
    """
    check_regular(file)
    try:
        with safe_open(file, framework="pt") as reader:
            for key in reader.keys():  # noqa: SIM118 (no mapping)
                view = reader.get_slice(key)
                yield key, view.get_dtype(), tuple(view.get_shape())
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: damaged or not a safetensors file ({error}).") from error
