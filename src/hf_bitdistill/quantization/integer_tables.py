"""Rows of 8-bit or 4-bit integers: how the table of an embedding or an output head is rounded.

int8: one float32 scale a row, `max|w| / 127`; an element is at most half a scale from its float value. int4: one float16
scale for every 32 columns of a row, codes -8 to 7 stored plus 8, even column in the low nibble. The value of the largest
magnitude becomes -8, so the scale has its sign reversed (as in llama.cpp's Q4_0); a value of the other sign and nearly that magnitude is up to
a whole scale from its float value, every other one half a scale.
"""

from __future__ import annotations

from collections.abc import Iterable

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


def check_table(codes: Tensor, scale: Tensor, columns: int) -> None:
    """Refuse what the functions above never make.

    Raises:
        ValueError: "`weight` ..." or "`weight_scale` ...", as the two are called in a checkpoint.
    """
    if not all(torch.isfinite(extreme) for extreme in torch.aminmax(scale)):
        raise ValueError("weight_scale is not finite")
    if codes.dtype == torch.int8:
        if scale.min() < 0:
            raise ValueError("weight_scale is negative")
        if codes.min() == -128:
            raise ValueError("weight holds the code -128, which no 8-bit table has")
    elif columns % 2 and (codes[:, -1] >> 4).any():
        raise ValueError("weight holds a code beyond its last column")


def table_shapes(
    rows: int, columns: int, bits: int
) -> tuple[tuple[int, int], torch.dtype, tuple[int, ...], torch.dtype]:
    """Shape and dtype of the codes, and of the scales, of a table of 8 or 4 bits."""
    if bits == 8:
        return (rows, columns), torch.int8, (rows,), torch.float32
    return (rows, -(-columns // 2)), torch.uint8, (rows, -(-columns // INT4_GROUP)), torch.float16


def quantize_table(table: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """[`quantize_int8_rows`] or [`quantize_int4_groups`], for 8 or 4 bits."""
    return quantize_int8_rows(table) if bits == 8 else quantize_int4_groups(table)


def dequantize_table(codes: Tensor, scale: Tensor, columns: int) -> Tensor:
    """The values that rows of integers stand for, float32 `[R, C]`, on any device.

    Args:
        codes, scale: of [`quantize_table`], or some rows of them.
        columns: C; an odd one cannot be told from 4-bit codes.
    """
    if codes.dtype == torch.int8:
        return codes.float() * scale.float()[:, None]
    pairs = torch.stack([codes & 15, codes >> 4], dim=-1).view(codes.shape[0], -1)[:, :columns]
    return (pairs.float() - 8) * scale.float().repeat_interleave(INT4_GROUP, dim=1)[:, :columns]


def least_lossy_dtype(pieces: Iterable[Tensor]) -> torch.dtype:
    """The 16-bit dtype that changes a table less, given in pieces: bfloat16 for one that came from bfloat16; float16, with 3 more bits,
    unless it overflows."""
    errors = {torch.bfloat16: 0.0, torch.float16: 0.0}
    for piece in pieces:
        for rows in _row_slices(piece):
            values = piece[rows].float()
            for dtype in errors:
                errors[dtype] += (values.to(dtype).float() - values).abs().sum().item()
    return min(errors, key=errors.__getitem__)


def exact_dtype(table: Tensor) -> torch.dtype:
    """The 16-bit dtype that holds every value of a table; its own dtype if there is none."""
    exact = {torch.float16, torch.bfloat16}
    for rows in _row_slices(table):
        values = table[rows]
        exact = {dtype for dtype in exact if torch.equal(values.to(dtype).to(values.dtype), values)}
        if not exact:
            return table.dtype
    return torch.bfloat16 if torch.bfloat16 in exact else torch.float16
