"""GGUF's block formats that hold ternary weights: pure functions on numpy arrays, for those who write such files and those who read them."""

from .blocks import (
    FORMATS,
    Q2_0,
    Q2_0_128,
    TQ1_0,
    TQ2_0,
    BlockFormat,
    TensorType,
    float16_error,
    float16_scales,
    pack_blocks,
    q2_0_of,
    unpack_blocks,
)


__all__ = [
    "FORMATS",
    "Q2_0",
    "Q2_0_128",
    "TQ1_0",
    "TQ2_0",
    "BlockFormat",
    "TensorType",
    "float16_error",
    "float16_scales",
    "pack_blocks",
    "q2_0_of",
    "unpack_blocks",
]
