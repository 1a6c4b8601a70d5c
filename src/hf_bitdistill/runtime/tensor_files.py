"""Tensors of safetensors files, one at a time, without keeping the files in memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ..files.tensor_headers import TensorHeader


# A memory-mapped page counts as memory of the process until the file is closed, so it is opened again now and then: of a small file, whose
# header is short, after fewer bytes.
_BYTES_BEFORE_REOPENING = 16 << 20
_LEAST_BYTES, _SHARE_OF_FILE = 4 << 20, 64


class TensorFiles:
    """Reads tensors by the name they have in the model.

    Args:
        headers: from [`hf_bitdistill.modeling.checkpoint.read_headers`].
    """

    def __init__(self, headers: dict[str, TensorHeader]):
        self.headers = headers
        self._file: str | None = None
        self._reader: Any = None
        self._read, self._limit = 0, 0

    def _open(self, file: str, size: int):
        if file != self._file or self._read > self._limit:
            self._reader = None
            self._reader, self._file, self._read = safe_open(file, framework="pt"), file, 0
            self._limit = min(_BYTES_BEFORE_REOPENING, max(_LEAST_BYTES, os.path.getsize(file) // _SHARE_OF_FILE))
        self._read += size
        return self._reader

    def read(self, name: str) -> Tensor:
        """A tensor, in the file's dtype. It may be a view into the file: do not keep it.

        Raises:
            KeyError: no file has it.
        """
        header = self.headers[name]
        tensor = self._open(header.file, 0).get_tensor(header.key)
        self._read += tensor.nbytes
        return tensor

    def part(self, name: str, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` of a tensor, as far as it has them, in the file's dtype."""
        header = self.headers[name]
        return self._open(header.file, (stop - start) * self._width(name)).get_slice(header.key)[start:stop]

    def _width(self, name: str) -> int:
        """Bytes of a row in float32."""
        return torch.Size(self.headers[name].shape[1:]).numel() * 4

    @cached_property
    def _below(self) -> dict[str, list[str]]:
        """Module -> names of the tensors below it: a mixture has too many modules to look for each among all names."""
        below: dict[str, list[str]] = {}
        for name in self.headers:
            parts = name.split(".")
            for depth in range(1, len(parts)):
                below.setdefault(".".join(parts[:depth]), []).append(name)
        return below

    def group(self, module: str) -> dict[str, Tensor]:
        """All tensors below a module, by their names within it."""
        prefix = f"{module}."
        return {name.removeprefix(prefix): self.read(name) for name in self._below.get(module, ())}

    def rows(self, name: str, count: int | None = None, multiple: int = 1) -> Iterator[tuple[int, Tensor]]:
        """A matrix in pieces `(first row, rows)`, in the file's dtype.

        Args:
            count: rows a piece; default: about 16 MB of float32.
            multiple: every piece but the last has a multiple of as many rows.
        """
        rows = self.headers[name].shape[0]
        count = -(-(count or max(1, (16 << 20) // self._width(name))) // multiple) * multiple
        for start in range(0, rows, count):
            stop = min(start + count, rows)
            yield start, self.part(name, start, stop)

    def equal(self, first: str, second: str) -> bool:
        """Whether two matrices hold the same values."""
        if self.headers[first].shape != self.headers[second].shape:
            return False
        pairs = zip(self.rows(first), self.rows(second), strict=True)
        return all(torch.equal(a.float(), b.float()) for (_, a), (_, b) in pairs)

    def close(self) -> None:
        """Unmap the files."""
        self._file, self._reader, self._read = None, None, 0
