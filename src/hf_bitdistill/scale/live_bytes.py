"""Bytes of the tensors that are alive, as a computation makes and frees them; on fake tensors, without any memory."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .._compat import TorchDispatchMode, tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operators return while it is active, each once, from then until it is freed.

    What exists before is not counted, nor what an operator uses inside of itself. Entered within a `FakeTensorMode` it counts what the
    same computation would take with real tensors.

    Attributes:
        now: bytes alive.
        peak: the most since [`reset_peak`], or since it was made.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, weakref.finalize] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        # (A view's storage is known already, or was there before: that of an argument.)
        before = None
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                if before is None:
                    before = {
                        id(each.untyped_storage()) for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)
                    }
                self._see(value.untyped_storage(), before)
        return result

    def _see(self, storage: torch.UntypedStorage, before: set[int]) -> None:
        key = id(storage)
        if key in before or key in self._known:
            return
        size = storage.nbytes()
        self._known[key] = weakref.finalize(storage, partial(self._forget, key, size))
        self.now += size
        self.peak = max(self.peak, self.now)

    def _forget(self, key: int, size: int) -> None:
        del self._known[key]
        self.now -= size

    def reset_peak(self) -> None:
        self.peak = self.now

    @contextmanager
    def part(self) -> Iterator[Peak]:
        """What the block within takes: its peak above what was alive when it began, and what it leaves alive."""
        found, before = Peak(), self.now
        self.reset_peak()
        yield found
        found.peak, found.kept = self.peak - before, self.now - before


class Peak:
    """Of a part of a computation, see [`LiveBytes.part`]."""

    peak: int = 0
    kept: int = 0
