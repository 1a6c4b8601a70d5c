"""Ternary codes and scales in GGUF's blocks.

A tensor of GGUF is a sequence of rows; a row is a whole number of blocks; a block holds consecutive weights of one row and one scale `d`, a
little-endian float16. A weight is its code times `d`. Rows have no padding, so a format takes a matrix only if its columns are a multiple of
the weights of a block.

| format | type number | weights a block | bytes a block | bits a weight | where `d` is |
|---|---|---|---|---|---|
| TQ1_0 | 34 | 256 | 54 | 1.6875 | last 2 bytes |
| TQ2_0 | 35 | 256 | 66 | 2.0625 | last 2 bytes |
| Q2_0 | 42 | 64 | 18 | 2.25 | first 2 bytes |
| Q2_0 with 128 | 42 | 128 | 34 | 2.125 | first 2 bytes |

**TQ1_0** stores 5 ternary digits (code + 1, the first one is the most significant) in a byte: the number `n < 243` they make is stored as `ceil(n * 256 / 243)`,
so that multiplying by 3 and taking the ninth bit upwards gives one digit after the other. Byte `m < 32` has weights `m, m + 32, ... m + 128`;
byte `32 + m` with `m < 16` has `160 + m, 160 + m + 16, ... 160 + m + 64`; byte `48 + m` with `m < 4` has the four weights `240 + m, 240 + m + 4,
... 240 + m + 12` and a last digit of 0. Then comes `d`.

**TQ2_0** stores 4 codes + 1 in a byte of 2-bit fields. The 64 bytes are two halves of 32 for 128 weights each: byte `m` of a half has weights
`m, m + 32, m + 64, m + 96` of it in bits 0-1, 2-3, 4-5, 6-7. Then comes `d`.

**Q2_0** begins with `d`; then byte `m` has the consecutive weights `4 m .. 4 m + 3` in bits 0-1, 2-3, 4-5, 6-7, as code + 1. Its fourth level (field 3, a weight of
`2 d`) is no ternary code. llama.cpp has blocks of 64; the Bonsai runtime, whose type number is the same, has the same layout with blocks of 128: only the
number of bytes of a tensor tells them apart ([`q2_0_of`]).

TQ1_0 and TQ2_0 are packed and unpacked by the package `gguf`, Q2_0, which it lacks, by this module.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np


_SCALE_BYTES = 2


@dataclass(frozen=True)
class TensorType:
    """A type of ggml.

    Attributes:
        name: what it is called.
        number: as it stands in files.
        weights, bytes: of a block.
    """

    name: str
    number: int
    weights: int
    bytes: int

    def size(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor."""
        return prod(shape) // self.weights * self.bytes


@dataclass(frozen=True)
class BlockFormat(TensorType):
    """A type with ternary codes and scales; see the table of this module.

    Attributes:
        scale_first: whether `d` stands before the codes.
    """

    scale_first: bool


TQ1_0 = BlockFormat("TQ1_0", 34, 256, 54, False)
TQ2_0 = BlockFormat("TQ2_0", 35, 256, 66, False)
Q2_0 = BlockFormat("Q2_0", 42, 64, 18, True)
Q2_0_128 = BlockFormat("Q2_0 (blocks of 128)", 42, 128, 34, True)

FORMATS = (TQ1_0, TQ2_0, Q2_0, Q2_0_128)


def pack_blocks(codes: np.ndarray, scales: np.ndarray, block: BlockFormat) -> np.ndarray:
    """Codes and scales as the bytes of a tensor.

    Args:
        codes: `[rows, columns]`, values -1, 0, 1.
        scales: anything that broadcasts to `[rows, columns / weights of a block]`; each is rounded to float16.

    Returns:
        uint8 `[rows, bytes of a row]`.

    Raises:
        ValueError: the columns are no multiple of the block; a code is none of the three; a scale is not finite, negative, too large
            for float16 or so small that it becomes 0 there.
    """
    rows, columns = codes.shape
    if columns % block.weights:
        raise ValueError(
            f"has rows of {columns} weights, which {block.name} cannot hold: no multiple of {block.weights}"
        )
    if codes.size and (codes.min() < -1 or codes.max() > 1):
        raise ValueError("holds a code that is none of -1, 0, 1")
    blocks = columns // block.weights
    scales = np.broadcast_to(np.asarray(scales, np.float32), (rows, blocks))
    half = float16_scales(scales)
    scale_bytes = np.ascontiguousarray(half).view(np.uint8).reshape(rows, blocks, _SCALE_BYTES)
    fields = _pack_fields(codes.reshape(rows, blocks, block.weights), block)
    parts = (scale_bytes, fields) if block.scale_first else (fields, scale_bytes)
    return np.concatenate(parts, axis=-1).reshape(rows, blocks * block.bytes)


def float16_scales(scales: np.ndarray) -> np.ndarray:
    """Scales as they stand in blocks.

    Raises:
        ValueError: one is not finite, negative, too large for float16 or so small that it becomes 0 there.
    """
    with np.errstate(over="ignore"):
        half = scales.astype("<f2")
    if not np.isfinite(half).all() or (half < 0).any():
        raise ValueError("has a scale that float16 cannot hold, or a negative one")
    if ((half == 0) & (scales != 0)).any():
        raise ValueError("has a scale that is 0 in float16")
    return half


def unpack_blocks(data: np.ndarray, block: BlockFormat) -> tuple[np.ndarray, np.ndarray]:
    """The inverse of [`pack_blocks`].

    Args:
        data: uint8 `[rows, bytes of a row]`.

    Returns:
        Codes, int8 `[rows, columns]`, and scales, float32 `[rows, columns / weights of a block]`. A block without any weight but 0 may have any
        scale, also 0.

    Raises:
        ValueError: the bytes of a row are no multiple of the block; a field is the fourth level, which is no ternary code; a scale is not finite
            or negative.
    """
    rows, width = data.shape
    if width % block.bytes:
        raise ValueError(
            f"has rows of {width} bytes, no multiple of the {block.bytes} bytes of a block of {block.name}"
        )
    blocks = np.ascontiguousarray(data).reshape(rows, -1, block.bytes)
    if block.scale_first:
        scale_bytes, fields = blocks[..., :_SCALE_BYTES], blocks[..., _SCALE_BYTES:]
    else:
        fields, scale_bytes = blocks[..., :-_SCALE_BYTES], blocks[..., -_SCALE_BYTES:]
    scales = np.ascontiguousarray(scale_bytes).view("<f2")[..., 0].astype(np.float32)
    if not np.isfinite(scales).all() or (scales < 0).any():
        raise ValueError("has a scale that is not finite, or a negative one")
    codes = _unpack_fields(fields, block)
    if codes.size and codes.max() > 1:
        raise ValueError("has weights of the fourth level, which is no ternary code")
    return codes.reshape(rows, -1), scales


def q2_0_of(size: int, weights: int) -> BlockFormat:
    """Which of the two formats with type number 42 a tensor has.

    Args:
        size: bytes of the tensor in the file.
        weights: their number, by the tensor's shape.

    Raises:
        ValueError: neither fits.
    """
    for block in (Q2_0, Q2_0_128):
        if weights % block.weights == 0 and weights // block.weights * block.bytes == size:
            return block
    raise ValueError(
        f"has {size} bytes for {weights} weights of type 42 (Q2_0), which fits blocks neither of 64 nor of 128"
    )


def float16_error(scales: np.ndarray) -> float:
    """The largest relative error that rounding these positive scales to float16 makes; at most 2^-11 for those from 6.2e-5 to 65504."""
    scales = np.asarray(scales, np.float64)
    with np.errstate(over="ignore"):
        half = scales.astype(np.float16).astype(np.float64)
    return float(np.max(np.abs(half - scales) / scales)) if scales.size else 0.0


def _pack_fields(codes: np.ndarray, block: BlockFormat) -> np.ndarray:
    """The bytes of the codes `[rows, blocks, weights]`, without scales."""
    if block.scale_first:
        fields = (codes.astype(np.int8) + 1).astype(np.uint8).reshape(*codes.shape[:2], -1, 4)
        return fields[..., 0] | fields[..., 1] << 2 | fields[..., 2] << 4 | fields[..., 3] << 6
    packed = _package(block).quantize_blocks(codes.reshape(-1, block.weights).astype(np.float32))
    return packed[:, :-_SCALE_BYTES].reshape(*codes.shape[:2], -1)


def _unpack_fields(fields: np.ndarray, block: BlockFormat) -> np.ndarray:
    """The inverse of [`_pack_fields`]; 2 for the fourth level."""
    if block.scale_first:
        shifts = np.array([0, 2, 4, 6], np.uint8)
        return (fields[..., None] >> shifts & 3).astype(np.int8).reshape(*fields.shape[:2], -1) - np.int8(1)
    fields = fields.reshape(-1, fields.shape[-1])
    one = np.broadcast_to(np.array([1], "<f2").view(np.uint8), (len(fields), _SCALE_BYTES))
    weights = _package(block).dequantize_blocks(np.concatenate([fields, one], axis=-1))
    return weights.astype(np.int8)


def _package(block: BlockFormat):
    from gguf import quants

    return getattr(quants, block.name)
