"""What a GGUF file says of itself, and the bytes of its tensors.

Not read by the package `gguf`: it refuses a whole file for one type it does not know (Q2_0), and takes one size of block for granted where
two are in use. Every number that leads somewhere is checked against the size of the file before it is followed.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ..files.tensor_headers import CheckpointError, check_regular


_MAGIC, _VERSIONS, _ALIGNMENT = b"GGUF", (2, 3), 32
# Value types of metadata, as struct's letters; then the two that have no fixed size.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
# The least that an entry takes: what a count may claim at most follows from the size of the file.
_LEAST_KEY, _LEAST_TENSOR = 8 + 4 + 1, 8 + 4 + 8 + 4 + 8
_MOST_DIMENSIONS, _MOST_WEIGHTS = 4, 1 << 40


@dataclass(frozen=True)
class Strings:
    """A list of strings in the metadata, which may be as long as a vocabulary: only its length was read."""

    count: int


@dataclass(frozen=True)
class GgufTensor:
    """One tensor.

    Attributes:
        shape: in torch's order, the last dimension is that of the consecutive weights.
        number: ggml's number of its type.
        start: where its bytes begin in the file.
        room: bytes from there to the next tensor, or to the end of the file.
        is_last: nothing follows it.
    """

    name: str
    shape: tuple[int, ...]
    number: int
    start: int
    room: int
    is_last: bool

    @property
    def weights(self) -> int:
        return prod(self.shape)


class GgufFile:
    """Metadata and tensors of a GGUF file.

    Attributes:
        path: of the file.
        metadata: key -> number, string, truth value, list of numbers, or [`Strings`].
        tensors: name -> [`GgufTensor`].
        alignment: every tensor starts at a multiple of it, after the header.

    Raises:
        CheckpointError: no such file, no GGUF, or a damaged one; names the file and, where it is one, the key or the tensor.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        check_regular(self.path)
        self._size = self.path.stat().st_size
        if self._size < 24:
            raise CheckpointError(f"{self.path}: is no GGUF file (it has {self._size} bytes).")
        self._bytes = np.memmap(self.path, mode="r", dtype=np.uint8)
        # (A vocabulary and its merges are hundreds of thousands of strings: slices of an array would take seconds.)
        self._header = self._bytes.data
        self._at = 0
        self._places: dict[str, tuple[int, int]] = {}
        if self._take(4) != _MAGIC:
            raise CheckpointError(f"{self.path}: is no GGUF file.")
        version, tensors, keys = self._unpack("<IQQ", "the header")
        if version not in _VERSIONS:
            swapped = struct.unpack(">I", struct.pack("<I", version))[0]
            what = "a GGUF file of a big-endian machine" if swapped in _VERSIONS else f"GGUF of version {version}"
            raise CheckpointError(f"{self.path}: is {what}; versions 2 and 3, little-endian, are read.")
        self.metadata = self._read_metadata(keys)
        self.alignment = self._read_alignment()
        self.tensors = self._read_tensors(tensors)
        del self._header

    # ---- the header ---------------------------------------------------------------------------------------------

    def _left(self) -> int:
        return self._size - self._at

    def _take(self, count: int, what: str = "the header") -> bytes:
        if count > self._left():
            raise CheckpointError(f"{self.path}: is truncated or damaged: {what} ends beyond the file.")
        self._at += count
        return self._header[self._at - count : self._at].tobytes()

    def _unpack(self, layout: str, what: str) -> tuple[Any, ...]:
        size = struct.calcsize(layout)
        if size > self._left():
            raise CheckpointError(f"{self.path}: is truncated or damaged: {what} ends beyond the file.")
        self._at += size
        return struct.unpack_from(layout, self._header, self._at - size)

    def _string(self, what: str) -> str:
        (length,) = self._unpack("<Q", what)
        try:
            return self._take(length, what).decode("utf-8")
        except UnicodeDecodeError:
            raise CheckpointError(f"{self.path}: is damaged: {what} is no text in UTF-8.") from None

    def _count(self, count: int, least: int, what: str) -> int:
        if count * least > self._left():
            raise CheckpointError(
                f"{self.path}: is truncated or damaged: {count} {what} cannot be in {self._left()} bytes."
            )
        return count

    def _read_metadata(self, count: int) -> dict[str, Any]:
        metadata: dict[str, Any] = {}
        for index in range(self._count(count, _LEAST_KEY, "keys")):
            start = self._at
            key = self._string(f"key {index}")
            (kind,) = self._unpack("<I", f"key {key!r}")
            if key in metadata:
                raise CheckpointError(f"{self.path}: is damaged: it has the key {key!r} twice.")
            metadata[key] = self._value(kind, f"key {key!r}")
            self._places[key] = (start, self._at)
        return metadata

    def _value(self, kind: int, what: str) -> Any:
        if kind in _SCALARS:
            return self._unpack(f"<{_SCALARS[kind]}", what)[0]
        if kind == _STRING:
            return self._string(what)
        if kind != _ARRAY:
            raise CheckpointError(f"{self.path}: {what} has a value of type {kind}, which GGUF does not have.")
        inner, count = self._unpack("<IQ", what)
        if inner in _SCALARS:
            width = struct.calcsize(f"<{_SCALARS[inner]}")
            self._count(count, width, f"values of {what}")
            return list(self._unpack(f"<{count}{_SCALARS[inner]}", what))
        if inner != _STRING:
            raise CheckpointError(f"{self.path}: {what} is a list of values of type {inner}, which is not read.")
        for _ in range(self._count(count, 8, f"strings of {what}")):
            (length,) = self._unpack("<Q", what)
            if length > self._left():
                raise CheckpointError(f"{self.path}: is truncated or damaged: {what} ends beyond the file.")
            self._at += length
        return Strings(count)

    def _read_alignment(self) -> int:
        alignment = self.metadata.get("general.alignment", _ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1) or alignment > 1 << 20:
            raise CheckpointError(f"{self.path}: general.alignment={alignment!r} is no power of two.")
        return alignment

    def _read_tensors(self, count: int) -> dict[str, GgufTensor]:
        entries: dict[str, tuple[tuple[int, ...], int, int]] = {}
        for index in range(self._count(count, _LEAST_TENSOR, "tensors")):
            name = self._string(f"the name of tensor {index}")
            what = f"tensor {name!r}"
            if name in entries:
                raise CheckpointError(f"{self.path}: is damaged: it has {what} twice.")
            (dimensions,) = self._unpack("<I", what)
            if not 1 <= dimensions <= _MOST_DIMENSIONS:
                raise CheckpointError(f"{self.path}: {what} has {dimensions} dimensions.")
            shape = tuple(reversed(self._unpack(f"<{dimensions}Q", what)))
            number, offset = self._unpack("<IQ", what)
            if not 0 < prod(shape) <= _MOST_WEIGHTS:
                raise CheckpointError(f"{self.path}: {what} has the shape {list(shape)}.")
            entries[name] = (shape, number, offset)
        first = -(-self._at // self.alignment) * self.alignment
        return self._placed(entries, first)

    def _placed(self, entries: dict[str, tuple[tuple[int, ...], int, int]], first: int) -> dict[str, GgufTensor]:
        starts = sorted({first + offset for _, _, offset in entries.values()})
        ends = dict(zip(starts, [*starts[1:], self._size], strict=True))
        if len(starts) < len(entries):
            raise CheckpointError(f"{self.path}: is damaged: two tensors start at the same place.")
        tensors = {}
        for name, (shape, number, offset) in entries.items():
            start = first + offset
            if offset % self.alignment or start >= self._size:
                raise CheckpointError(
                    f"{self.path}: is truncated or damaged: tensor {name!r} starts at byte {start} of {self._size}."
                )
            tensors[name] = GgufTensor(name, shape, number, start, ends[start] - start, start == starts[-1])
        return tensors

    # ---- contents -----------------------------------------------------------------------------------------------

    def place(self, name: str) -> str:
        """File and tensor, for messages."""
        return f"{self.path}: tensor {name!r}"

    def holds(self, tensor: GgufTensor, size: int) -> bool:
        """Whether a tensor of that many bytes ends where the next one starts, but for the padding, or where the file ends."""
        padded = -(-size // self.alignment) * self.alignment
        return tensor.room == padded or (tensor.is_last and tensor.room == size)

    def rows(self, tensor: GgufTensor, row_bytes: int, start: int, stop: int) -> np.ndarray:
        """Bytes of some rows of a tensor, uint8 `[stop - start, row_bytes]`: a view into the file.

        Raises:
            CheckpointError: the tensor's bytes end beyond the next tensor's start, or the file's end; names it.
        """
        if tensor.weights // tensor.shape[-1] * row_bytes > tensor.room:
            raise CheckpointError(
                f"{self.place(tensor.name)} is truncated or damaged: {tensor.room} bytes are there for its shape "
                f"{list(tensor.shape)}."
            )
        first, last = tensor.start + start * row_bytes, tensor.start + stop * row_bytes
        return np.asarray(self._bytes[first:last]).reshape(stop - start, row_bytes)

    def release(self) -> None:
        """Forget the pages that were read: mapped, they count as memory of the process."""
        self._bytes = np.memmap(self.path, mode="r", dtype=np.uint8)

    def entry(self, key: str) -> memoryview:
        """A key of the metadata with its value, as they are in the file: a list of strings is whole in it."""
        start, end = self._places[key]
        return self._bytes[start:end].data

    def write_metadata(self, target: Path, prefixes: Iterable[str], architecture: str) -> None:
        """Write a GGUF file without tensors that has the keys with these prefixes, byte for byte, and an architecture."""
        prefixes = tuple(prefixes)
        kept = [self.entry(key) for key in self._places if key.startswith(prefixes)]
        name, value = b"general.architecture", architecture.encode()
        own = struct.pack("<Q", len(name)) + name + struct.pack("<IQ", _STRING, len(value)) + value
        parts = [_MAGIC, struct.pack("<IQQ", 3, 0, len(kept) + 1), own]
        target.write_bytes(b"".join([*parts, *kept]))
