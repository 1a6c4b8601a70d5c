"""How a GGUF file stores a matrix, and which type a matrix can have.

| matrix | types |
|---|---|
| ternary | blocks of codes with a scale ([`hf_bitdistill.gguf_format`]); Q4_0 with the same scale, of whose 16 levels -1, 0 and 1 are used; or F16 |
| a projection in full precision | BF16: a massive activation, which is why such projections are kept, may be too large for the float16 that llama.cpp rounds to beside F16 weights |
| embedding and head | Q8_0, Q6_K, Q4_0 or F16 |
| norms, biases | F32 |
"""

from __future__ import annotations

import numpy as np

from ..gguf_format import Q2_0, TQ1_0, TQ2_0, BlockFormat, TensorType, float16_scales, pack_blocks


F32 = TensorType("F32", 0, 1, 4)
F16 = TensorType("F16", 1, 1, 2)
BF16 = TensorType("BF16", 30, 1, 2)
Q8_0 = TensorType("Q8_0", 8, 32, 34)
Q6_K = TensorType("Q6_K", 14, 256, 210)
Q4_0 = TensorType("Q4_0", 2, 32, 18)

TABLE_TYPES = {"q8_0": Q8_0, "q6_k": Q6_K, "q4_0": Q4_0, "f16": F16}
# What `--type` means: the blocks of the ternary matrices, and `general.file_type`.
TERNARY_TYPES: dict[str, tuple[BlockFormat | None, int]] = {
    "tq2_0": (TQ2_0, 37),
    "tq1_0": (TQ1_0, 36),
    "q2_0": (Q2_0, 41),
    "f16": (None, 1),
}


def ternary_type(
    wanted: BlockFormat | None, columns: int, group_size: int | None, allow_q2_0: bool = True
) -> tuple[TensorType, str]:
    """The type of a ternary matrix, and why it is not the wanted one (or nothing).

    Args:
        wanted: `None`: F16.
        columns: of the matrix.
        group_size: columns that share a scale; `None`: a row or more.
        allow_q2_0: whether the reader knows Q2_0.
    """
    if wanted is None:
        return F16, ""
    reasons = []
    for block in (wanted, *([Q2_0] if allow_q2_0 and wanted is not Q2_0 else [])):
        if columns % block.weights:
            reasons.append(f"rows of {columns} are no multiple of {block.weights}")
        elif group_size is not None and group_size % block.weights:
            reasons.append(f"scales for {group_size} weights do not fit blocks of {block.weights}")
        else:
            return block, "; ".join(reasons)
    if columns % Q4_0.weights == 0 and (group_size is None or group_size % Q4_0.weights == 0):
        return Q4_0, "; ".join(reasons)
    return F16, "; ".join(reasons)


def table_type(wanted: TensorType, columns: int) -> tuple[TensorType, str]:
    """The type of the embedding or the head, and why it is not the wanted one (or nothing)."""
    if columns % wanted.weights == 0:
        return wanted, ""
    reason = f"rows of {columns} are no multiple of {wanted.weights}"
    return (Q8_0 if columns % Q8_0.weights == 0 else F16), reason


def encode(values: np.ndarray, kind: TensorType) -> np.ndarray:
    """Some rows of a matrix, or a vector, as bytes of the file.

    Args:
        values: float32, finite.

    Returns:
        uint8, 1-dimensional.

    Raises:
        ValueError: a value is too large for the type.
    """
    from gguf import GGMLQuantizationType, quants

    values = np.ascontiguousarray(values, np.float32)
    if kind is F32:
        data = values.astype("<f4")
    elif kind is F16:
        with np.errstate(over="ignore"):
            data = values.astype("<f2")
        if not np.isfinite(data).all():
            raise ValueError("a value is too large for float16")
    elif kind is Q6_K:
        data = _q6_k(values.reshape(-1, Q6_K.weights))
    else:
        data = quants.quantize(values, GGMLQuantizationType(kind.number))
        if kind in (Q8_0, Q4_0) and np.abs(values).max(initial=0.0) > 65504:
            raise ValueError(f"a value is too large for {kind.name}")
    return np.ascontiguousarray(data).view(np.uint8).reshape(-1)


def encode_ternary(codes: np.ndarray, scales: np.ndarray, group_size: int | None, kind: TensorType) -> np.ndarray:
    """Some rows of a ternary matrix as bytes of the file.

    Args:
        codes: int8 `[rows, columns]`.
        scales: float32 `[rows, groups]`.
        group_size: columns of a group; `None`: there is one.
        kind: from [`ternary_type`].

    Raises:
        ValueError: a scale does not fit the type.
    """
    columns = codes.shape[1]
    width = group_size or columns
    if isinstance(kind, BlockFormat):
        blocks = columns // kind.weights
        return pack_blocks(codes, np.repeat(scales, width // kind.weights, axis=1)[:, :blocks], kind).reshape(-1)
    if kind is Q4_0:
        blocks = columns // Q4_0.weights
        return _q4_0(codes, np.repeat(scales, width // Q4_0.weights, axis=1)[:, :blocks])
    return encode(codes * np.repeat(scales, width, axis=1)[:, :columns], kind)


def _q4_0(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Q4_0: a float16 scale, then 32 weights in units of it, 8 added: byte `m` of 16 has weights `m` and `m + 16`, the first in the low bits.

    (Rounding the effective weights, as for a table, would make the largest one -8 of its units and lose the one of the other sign.)
    """
    half = float16_scales(scales)
    fields = (codes.astype(np.int8) + 8).astype(np.uint8).reshape(*scales.shape, 2, 16)
    pairs = fields[..., 0, :] | fields[..., 1, :] << 4
    return np.concatenate([half[..., None].view(np.uint8), pairs], axis=-1).reshape(-1)


def _q6_k(blocks: np.ndarray) -> np.ndarray:
    """Q6_K: 16 sub-blocks of 16 weights, each weight 6 bits, each sub-block a scale of 8 bits in units of the block's float16.

    Bytes: the low 4 bits of the weights (two halves of 128: byte `m` of 64 has weights `m` and `64 + m` of it), the high 2 bits (32 bytes a half:
    byte `m` has weights `m, m + 32, m + 64, m + 96`), the 16 scales, then the float16.
    """
    count = len(blocks)
    parts = blocks.reshape(count, 16, 16)
    extreme = np.take_along_axis(parts, np.abs(parts).argmax(axis=-1, keepdims=True), axis=-1)[..., 0]
    wanted = extreme / -32  # the extreme weight becomes -32, the one value that has no opposite
    unit = np.abs(wanted).max(axis=-1, keepdims=True) / 127
    half = unit.astype("<f2")
    if not np.isfinite(half).all():
        raise ValueError("a value is too large for Q6_K")
    unit = half.astype(np.float32)
    scales = np.rint(np.divide(wanted, unit, out=np.zeros_like(wanted), where=unit > 0)).clip(-128, 127)
    steps = (scales * unit)[..., None]
    codes = np.rint(np.divide(parts, steps, out=np.zeros_like(parts), where=steps != 0)).clip(-32, 31)
    codes = (codes + 32).astype(np.uint8).reshape(count, 2, 128)
    low = codes & 15
    low = (low[..., :64] | low[..., 64:] << 4).reshape(count, 128)
    high = (codes >> 4).reshape(count, 2, 4, 32)
    high = (high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6).reshape(count, 64)
    return np.concatenate([low, high, scales.astype(np.int8).view(np.uint8), half.view(np.uint8)], axis=-1)
