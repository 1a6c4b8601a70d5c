"""The format of a native file: a decoder's weights as the kernels read them, with its description, in one file that is read at once.

    head | data (tensors, each at a multiple of `ALIGNMENT`) | index (JSON) | stamp (JSON, padded)

The head has sizes and the digest of the index; the index has the digest of every block of the data. So everything is checked as it is
read, while it is in the processor's cache, which costs little beside the reading. The stamp alone may change after the file was written: it
says in what state the checkpoint's files were last found to be those that the index names, and has a digest of its own.

The data is read into memory, not mapped: there it is in large pages on every system, and nobody who cuts the file off can end the process.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from ..ops.huge_pages import HugePageArena, aligned


_MAGIC, _FORMAT = b"bdnative", 1
# Magic, format, unused, bytes of data, index and stamp, digest of the index; then the digest of all that.
_HEAD, _HEAD_DIGEST = struct.Struct("<8sIIQQQQ"), struct.Struct("<Q")
_DATA_START = 4096
# One block is one task of reading; a piece is still in the cache when its digest is taken.
_BLOCK, _PIECE = 16 << 20, 1 << 20
_STAMP_ROOM = 256

_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.uint8, torch.float32, torch.bfloat16, torch.float16)}  # fmt: skip


def dtype_named(name: str) -> torch.dtype:
    """One of those that tensors of a file may have. Raises `KeyError` for another."""
    return _DTYPES[name]


class NativeFileError(ValueError):
    """A native file is damaged, or no native file of this format."""


class TensorWriter:
    """Gives tensors their places in the data of a file that is about to be written."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.size = 0

    def add(self, tensor: Tensor | None) -> list[Any] | None:
        """Where it will be, as [`view`] takes it."""
        if tensor is None:
            return None
        place = [self.size, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
        self.tensors.append(tensor)
        self.size += aligned(tensor.nbytes)
        return place


def view(data: Tensor, place: Any) -> Tensor | None:
    """A tensor in the data of a file, for what [`TensorWriter.add`] gave.

    Raises:
        TypeError, ValueError, KeyError, RuntimeError: there is no such tensor in it.
    """
    if place is None:
        return None
    start, name, shape = place
    dtype = dtype_named(name)
    stop = start + torch.Size(shape).numel() * dtype.itemsize
    if not 0 <= start <= stop <= data.numel() or start != aligned(start):
        raise ValueError("a tensor lies outside the data")
    return data[start:stop].view(dtype).view(shape)


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().data


def _pad(size: int) -> bytes:
    return b"\0" * (aligned(size) - size)


def write(file: Path, index: Mapping[str, Any], writer: TensorWriter, stamp: Any) -> None:
    """Write a native file, under a name that nobody reads yet."""
    with open(file, "wb") as stream:
        stream.write(b"\0" * _DATA_START)
        blocks, digest, left = [], xxhash.xxh3_64(), _BLOCK
        for tensor in writer.tensors:
            for part in (_bytes_of(tensor), memoryview(_pad(tensor.nbytes))):
                while part:
                    piece, part = part[:left], part[left:]
                    stream.write(piece)
                    digest.update(piece)
                    left -= len(piece)
                    if not left:
                        blocks.append(digest.intdigest())
                        digest, left = xxhash.xxh3_64(), _BLOCK
        if left < _BLOCK:
            blocks.append(digest.intdigest())
        content = json.dumps({**index, "blocks": blocks}, separators=(",", ":")).encode()
        stream.write(content)
        room = 2 * len(json.dumps(stamp)) + _STAMP_ROOM
        stream.write(_stamp_bytes(stamp, room))
        stream.seek(0)
        head = _HEAD.pack(_MAGIC, _FORMAT, 0, writer.size, len(content), room, xxhash.xxh3_64_intdigest(content))
        stream.write(head + _HEAD_DIGEST.pack(xxhash.xxh3_64_intdigest(head)))


def _stamp_bytes(stamp: Any, room: int) -> bytes:
    text = json.dumps(stamp)
    content = json.dumps([text, xxhash.xxh3_64_hexdigest(text.encode())]).encode()
    if len(content) > room:
        raise ValueError("the stamp is too long")
    return content.ljust(room)


class NativeFile:
    """A native file that is being read. Index and stamp are read at once, the data where it is asked for.

    Args:
        file: its path.

    Attributes:
        index: what [`write`] was given.
        stamp: what was stamped last, `None` if that is damaged.
        size: bytes of the data.

    Raises:
        FileNotFoundError: there is none.
        OSError: it cannot be read.
        NativeFileError: it is damaged.
    """

    def __init__(self, file: Path):
        self.file = file
        with open(file, "rb") as stream:
            head = stream.read(_HEAD.size + _HEAD_DIGEST.size)
            if len(head) < _HEAD.size + _HEAD_DIGEST.size:
                raise NativeFileError("it is cut off")
            magic, number, _, self.size, length, room, digest = _HEAD.unpack_from(head)
            if (magic, number) != (_MAGIC, _FORMAT):
                raise NativeFileError("it is of another format")
            if _HEAD_DIGEST.unpack_from(head, _HEAD.size)[0] != xxhash.xxh3_64_intdigest(head[: _HEAD.size]):
                raise NativeFileError("its head is damaged")
            self._stamp_at, self._stamp_room = _DATA_START + self.size + length, room
            if os.fstat(stream.fileno()).st_size != self._stamp_at + room:
                raise NativeFileError("it is cut off, or too long")
            stream.seek(_DATA_START + self.size)
            content = stream.read(length)
            if xxhash.xxh3_64_intdigest(content) != digest:
                raise NativeFileError("its index is damaged")
            self.index: dict[str, Any] = json.loads(content)
            self.stamp = _read_stamp(stream.read(room))

    def read(self) -> Tensor:
        """The data, uint8, in large pages.

        Raises:
            OSError: it cannot be read.
            NativeFileError: it is damaged.
        """
        data = HugePageArena(self.size).rest()[: self.size]
        target, blocks = data.numpy().data, self.index["blocks"]
        starts = range(0, self.size, _BLOCK)
        if len(starts) != len(blocks):
            raise NativeFileError("its index is damaged")
        with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
            digests = pool.map(lambda start: self._read_block(target[start : start + _BLOCK], start), starts)
            for number, (digest, expected) in enumerate(zip(digests, blocks, strict=True)):
                if digest != expected:
                    raise NativeFileError(f"its data is damaged, in block {number}")
        return data

    def _read_block(self, target: memoryview, start: int) -> int:
        digest = xxhash.xxh3_64()
        with open(self.file, "rb", buffering=0) as stream:
            stream.seek(_DATA_START + start)
            while target:
                count = stream.readinto(target[:_PIECE])
                if not count:
                    raise NativeFileError("it is cut off")
                digest.update(target[:count])
                target = target[count:]
        return digest.intdigest()

    def write_stamp(self, stamp: Any) -> None:
        """Replace the stamp, in place.

        Raises:
            OSError: the file may not be written.
            ValueError: there is no room for it.
        """
        content = _stamp_bytes(stamp, self._stamp_room)
        with open(self.file, "r+b", buffering=0) as stream:
            stream.seek(self._stamp_at)
            stream.write(content)


def _read_stamp(content: bytes) -> Any:
    try:
        text, digest = json.loads(content)
        return json.loads(text) if xxhash.xxh3_64_hexdigest(text.encode()) == digest else None
    except (ValueError, TypeError, AttributeError):
        return None
