"""The offline weight format: ternary codes in 2-bit fields, in the layout of transformers' own `bitnet` method.

A matrix of `R` rows and `C` columns is stored as uint8 `[P, C]` with `P = ceil(R / 4)`. Row `r + k * P` of the matrix is
field `k` (bits `2k` and `2k + 1`) of packed row `r`; a field holds the weight plus one, so {-1, 0, 1} is stored as
{0, 1, 2}. Code 3 does not occur. Rows beyond `R` (when `R` is no multiple of 4) are zero bits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


VALUES_PER_BYTE = 4
_LOW_BITS = 0b01010101
# Below this many weights a matrix of equal values can be real; above it is what a zeroed or unwritten file looks like.
_MIN_WEIGHTS_FOR_CONSTANT_CHECK = 64


class PackedWeightError(ValueError):
    """A packed tensor is not what it should be. The message says what is wrong and, where known, in which file."""


def packed_rows(rows: int) -> int:
    """Number of uint8 rows that hold `rows` rows of ternary weights."""
    return math.ceil(rows / VALUES_PER_BYTE)


def pack_ternary(codes: Tensor) -> Tensor:
    """Pack ternary codes.

    Args:
        codes: `[R, C]` with values in {-1, 0, 1}, any dtype, not empty.

    Returns:
        uint8 `[ceil(R / 4), C]`.

    Raises:
        ValueError: `codes` is not a matrix, is empty, or holds another value.
    """
    if codes.ndim != 2 or codes.numel() == 0:
        raise ValueError(f"Ternary codes must be a non-empty matrix, got shape {tuple(codes.shape)}.")
    fields = codes.to(torch.int8)
    if not torch.equal(fields.to(codes.dtype), codes) or fields.abs().amax() > 1:
        raise ValueError("Ternary codes must be -1, 0 or 1.")
    return pack_fields(fields)


def pack_fields(codes: Tensor) -> Tensor:
    """Pack ternary codes along the first dimension, int8 `[N, ...]` -> uint8 `[ceil(N / 4), ...]`; nothing is checked."""
    stride = packed_rows(len(codes))
    packed = torch.zeros((stride, *codes.shape[1:]), dtype=torch.uint8, device=codes.device)
    for k in range(VALUES_PER_BYTE):
        field = codes[k * stride : (k + 1) * stride]
        packed[: field.shape[0]] |= (field + 1).to(torch.uint8) << (2 * k)
    return packed


def unpack_ternary(packed: Tensor, rows: int, dtype: torch.dtype = torch.int8) -> Tensor:
    """Inverse of [`pack_ternary`]: uint8 `[ceil(rows / 4), C]` -> `dtype [rows, C]`.

    Raises:
        PackedWeightError: wrong dtype or number of packed rows for `rows`.
    """
    check_storage(packed, rows, packed.shape[-1])
    codes = torch.empty((rows, packed.shape[1]), dtype=dtype, device=packed.device)
    unpack_fields(packed, codes)
    return codes


def unpack_fields(packed: Tensor, codes: Tensor) -> None:
    """Write the codes of uint8 `[ceil(N / 4), ...]` into `codes` `[N, ...]`, of any dtype and strides; nothing is checked."""
    stride = len(packed)
    for k in range(VALUES_PER_BYTE):
        part = codes[k * stride : (k + 1) * stride]
        # (In bytes for as long as possible: the wide result is written once.)
        field = (packed[: len(part)] >> (2 * k)) & 0b11
        part.copy_(field.view(torch.int8) - 1)


def check_storage(packed: Tensor, rows: int, columns: int) -> None:
    """Refuse another dtype or shape than that of `rows` x `columns` packed ternary weights.

    Raises:
        PackedWeightError: naming what was found.
    """
    expected = (packed_rows(rows), columns)
    if packed.dtype != torch.uint8 or tuple(packed.shape) != expected:
        raise PackedWeightError(
            f"is {packed.dtype} {list(packed.shape)}, but {rows} x {columns} ternary weights are stored as "
            f"torch.uint8 {list(expected)}"
        )


def check_packed_weight(packed: Tensor, rows: int, columns: int, valid: bool = False) -> None:
    """Refuse what no packed ternary matrix can be.

    Args:
        valid: it is known to hold no code 3.

    Raises:
        PackedWeightError: wrong dtype or shape, code 3 in a field, or all weights equal.
    """
    check_storage(packed, rows, columns)
    if not valid and _has_code_three(packed):
        row, column = (_threes(packed) != 0).nonzero()[0].tolist()
        raise PackedWeightError(f"holds the invalid code 3 (first in byte [{row}, {column}])")
    first = packed[0, 0] & 0b11
    # Almost always the first rows tell already.
    constant = _is_constant(packed[:1], 1, first) and _is_constant(packed, rows, first)
    if constant and (first == 1 or rows * columns >= _MIN_WEIGHTS_FOR_CONSTANT_CHECK):
        raise PackedWeightError(f"is constant: every weight is {int(first) - 1}")


def _threes(packed: Tensor) -> Tensor:
    """Not zero where a byte, or an integer of bytes, holds code 3."""
    low_bits = int.from_bytes(bytes([_LOW_BITS] * packed.element_size()), "little")
    return packed & (packed >> 1) & low_bits


def _has_code_three(packed: Tensor) -> bool:
    flat = packed.reshape(-1)
    whole = flat.numel() // 8 * 8
    if flat.device.type != "cpu" or whole == 0:
        return bool(_threes(flat).any())
    # Eight bytes at a time; torch shifts bytes one by one. No bit comes from another byte: bit 0 alone moves there.
    words = flat[:whole] if flat.storage_offset() % 8 == 0 else flat[:whole].clone()
    return bool(_threes(words.view(torch.int64)).any()) or bool(_threes(flat[whole:]).any())


def _is_constant(packed: Tensor, rows: int, code: Tensor) -> bool:
    """Whether all codes of the first `rows` rows are `code`."""
    stride = packed.shape[0]
    return all(
        bool(((packed[: min(stride, rows - k * stride)] >> (2 * k)) & 0b11 == code).all())
        for k in range(VALUES_PER_BYTE)
        if rows > k * stride
    )


def check_weight_scale(weight_scale: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse scales of a wrong shape, not finite, or not positive.

    Raises:
        PackedWeightError: naming what is wrong.
    """
    if tuple(weight_scale.shape) != tuple(shape) or not weight_scale.is_floating_point():
        raise PackedWeightError(f"is {weight_scale.dtype} {list(weight_scale.shape)}, expected floats {list(shape)}")
    if not torch.isfinite(weight_scale).all():
        raise PackedWeightError("holds a scale that is not finite")
    if not (weight_scale > 0).all():
        raise PackedWeightError("holds a scale that is not positive")
