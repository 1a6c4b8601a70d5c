"""Memory in large pages, for weights that are streamed through.

A matrix of a small model is smaller than a large page (2 MB on x86), so none of its own memory can be in one, and with
small pages every few kilobytes cost an address translation: decoding with a 0.6B model went from 73 to 85 % of the read
bandwidth when its matrices began to share large pages.
"""

from __future__ import annotations

import mmap

import torch
from torch import Tensor

from .c_header import ALIGNMENT


_HUGE_PAGE = 2 << 20
_BLOCK = 32 << 20
_OWN = _BLOCK // 2  # bytes from which a matrix is given pages of its own


def aligned(size: int) -> int:
    """Bytes that a piece of `size` bytes takes up in an arena."""
    return -(-size // ALIGNMENT) * ALIGNMENT


class HugePageArena:
    """Memory of a fixed size, in large pages where the system has them, handed out piece by piece. It lives as long as a
    piece of it.

    Args:
        size: bytes.
    """

    def __init__(self, size: int):
        length = -(-size // _HUGE_PAGE) * _HUGE_PAGE + _HUGE_PAGE
        if hasattr(mmap, "MADV_HUGEPAGE"):
            # Private: shared memory, the default, gets huge pages by another switch that is mostly off.
            memory = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            memory.madvise(mmap.MADV_HUGEPAGE)
        else:
            memory = mmap.mmap(-1, length)
        whole = torch.frombuffer(memory, dtype=torch.uint8)  # keeps the map alive
        self._free = whole[-whole.data_ptr() % _HUGE_PAGE :]

    def take(self, t: Tensor) -> Tensor:
        """A copy of `t` in this memory, behind what was taken before, at a multiple of `ALIGNMENT`."""
        size = t.numel() * t.element_size()
        copy = self._free[:size].view(t.dtype).view(t.shape).copy_(t)
        self._free = self._free[aligned(size) :]
        return copy

    def rest(self) -> Tensor:
        """What is left, uint8."""
        return self._free


def zeros(size: int) -> Tensor:
    """uint8 zeros, in large pages where there are enough of them to fill some. Most systems give these only to who asks."""
    return torch.zeros(size, dtype=torch.uint8) if size < _OWN else HugePageArena(size).rest()[:size]


class HugePagePool:
    """Arenas, made as they are needed."""

    def __init__(self) -> None:
        self._arena: HugePageArena | None = None

    def take(self, t: Tensor) -> Tensor:
        """A copy of `t`, which shares its pages with others unless it is large enough for pages of its own."""
        if t.nbytes >= _OWN:
            return HugePageArena(t.nbytes).take(t)
        if self._arena is None or self._arena.rest().numel() < aligned(t.nbytes):
            self._arena = HugePageArena(_BLOCK)
        return self._arena.take(t)
