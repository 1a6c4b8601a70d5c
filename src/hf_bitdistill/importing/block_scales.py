"""Scales of a matrix, one a block of consecutive weights, and the fewest numbers that say the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor


Granularity = Literal["tensor", "row", "group"]
GRANULARITIES: tuple[Granularity, ...] = ("tensor", "row", "group")
_GROUPS = (128, 64)


@dataclass(frozen=True)
class BlockScales:
    """Scales of one matrix of `columns` columns.

    Attributes:
        values: float32 `[rows, blocks]`.
        free: bool `[rows, blocks]`: every weight of the block is zero, so that any scale says the same.
        weights: of a block: 64, 128 or 256.
        columns: of the matrix.
    """

    values: np.ndarray
    free: np.ndarray
    weights: int
    columns: int

    @property
    def granularity(self) -> Granularity:
        """What has to have a scale of its own, exactly."""
        used = self.values[~self.free]
        if used.size == 0 or (used == used[0]).all():
            return "tensor"
        low, high = _extremes(self.values, self.free)
        return "row" if ((low == high) | self.free.all(axis=1)).all() else "group"

    @property
    def group_size(self) -> int:
        """The larger of 128 and 64 columns that can share a scale."""
        if self.weights >= _GROUPS[0]:
            return _GROUPS[0]
        low, high = _extremes(*self._pairs())
        return _GROUPS[0] if ((low == high) | self._pairs()[1].all(axis=-1)).all() else _GROUPS[1]

    def _pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Blocks of 64 as `[rows, pairs, 2]`; a last block without a partner is paired with a free one."""
        odd = self.values.shape[1] % 2
        values = np.pad(self.values, ((0, 0), (0, odd)))
        free = np.pad(self.free, ((0, 0), (0, odd)), constant_values=True)
        return values.reshape(len(values), -1, 2), free.reshape(len(free), -1, 2)

    def at(self, granularity: Granularity, group_size: int = 128) -> Tensor:
        """The scales as a packed layer has them: float32 `[1]`, `[rows]` or `[rows, groups]`, all positive.

        Args:
            granularity: this matrix's own, or a finer one.
        """
        used = self.values[~self.free]
        # (Where all weights are zero any scale will do: one that is there already.)
        spare = float(used.max()) if used.size else 1.0
        high = _extremes(self.values, self.free)[1]
        by_row = np.where(self.free.all(axis=1), spare, high)
        if granularity == "tensor":
            return torch.tensor([spare])
        if granularity == "row":
            return torch.from_numpy(by_row.astype(np.float32))
        values = np.where(self.free, by_row[:, None], self.values)
        if group_size > self.weights:
            paired, free = self._pairs()
            high = _extremes(paired, free)[1]
            values = np.where(free.all(axis=-1), by_row[:, None], high)
        elif group_size < self.weights:
            values = np.repeat(values, self.weights // group_size, axis=1)
        return torch.from_numpy(np.ascontiguousarray(values, np.float32))


def common(scales: list[BlockScales]) -> tuple[Granularity, int]:
    """Granularity and group size that say all of these exactly, with the fewest scales: a student has one for all of its layers."""
    granularity: Granularity = max((each.granularity for each in scales), key=GRANULARITIES.index, default="tensor")
    size = 128 if granularity != "group" else min(each.group_size for each in scales)
    return granularity, size


def _extremes(values: np.ndarray, free: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest scale along the last axis, of blocks that are not free."""
    return np.where(free, np.inf, values).min(axis=-1), np.where(free, -np.inf, values).max(axis=-1)
