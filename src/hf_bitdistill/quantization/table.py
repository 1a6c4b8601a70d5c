"""Rows of 8-bit or 4-bit integers: how the table of an embedding or an output head is rounded.

int8: one float32 scale a row, `max|w| / 127`; an element is at most half a scale from its float value. int4: one float16
scale for every 32 columns of a row, codes -8 to 7 stored plus 8, even column in the low nibble. The value of the largest
magnitude becomes -8, so the scale has its sign reversed (as in llama.cpp's Q4_0); a value of the other sign and nearly that magnitude is up to
a whole scale from its float value, every other one half a scale.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


INT4_GROUP = 32
# Rows that are in float32 at a time: a table of a large vocabulary must not need several times its size.
_ROWS = 8192


def quantize_int8_rows(table: Tensor) -> tuple[Tensor, Tensor]:
    """Round a table to int8.

    Args:
        table: floats `[R, C]`.

    Returns:
        `(codes, scale)`: int8 `[R, C]` in [-127, 127] and float32 `[R]`; a row of zeros has scale 0.

    Raises:
        ValueError: a value is not finite.
    """
    codes = torch.empty(table.shape, dtype=torch.int8)
    scale = torch.empty(table.shape[0])
    for rows in _row_slices(table):
        values = _finite(table[rows])
        scale[rows] = values.abs().amax(dim=1) / 127
        codes[rows] = _round(values, scale[rows, None], -127, 127)
    return codes, scale


def quantize_int4_groups(table: Tensor) -> tuple[Tensor, Tensor]:
    """Round a table to 4 bits in groups of 32 columns.

    Args:
        table: floats `[R, C]`.

    Returns:
        `(codes, scale)`: uint8 `[R, ceil(C / 2)]`, two codes a byte, and float16 `[R, ceil(C / 32)]`; a group of zeros has
        scale 0.

    Raises:
        ValueError: a value is not finite, or too large for a float16 scale.
    """
    count, columns = table.shape
    groups = -(-columns // INT4_GROUP)
    codes = torch.empty((count, -(-columns // 2)), dtype=torch.uint8)
    scale = torch.empty((count, groups), dtype=torch.float16)
    for rows in _row_slices(table):
        values = F.pad(_finite(table[rows]), (0, groups * INT4_GROUP - columns)).view(-1, groups, INT4_GROUP)
        low, high = values.amin(dim=2), values.amax(dim=2)
        scale[rows] = (torch.where(high >= -low, high, low) / -8).half()
        if not torch.isfinite(scale[rows]).all():
            raise ValueError("a value is too large for a scale in float16")
        fields = (_round(values, scale[rows].float()[:, :, None], -8, 7) + 8).to(torch.uint8)
        fields = fields.view(values.shape[0], -1)
        fields[:, columns:] = 0  # nothing is stored there, so every packing of it is the same
        pairs = fields.view(values.shape[0], -1, 2)[:, : codes.shape[1]]
        codes[rows] = pairs[..., 0] | pairs[..., 1] << 4
    return codes, scale


def _row_slices(table: Tensor) -> list[slice]:
    return [slice(start, start + _ROWS) for start in range(0, table.shape[0], _ROWS)]


def _finite(values: Tensor) -> Tensor:
    if not torch.isfinite(values).all():
        raise ValueError("a value is not finite")
    return values.float()


def _round(values: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    # Where the scale is zero (also by underflow of float16) every value counts as zero.
    quotient = torch.where(scale != 0, values / scale, 0.0)
    return quotient.round().clamp(low, high).to(torch.int8)
