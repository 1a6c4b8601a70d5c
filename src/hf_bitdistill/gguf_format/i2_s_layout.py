"""I2_S, the type of ternary matrices that bitnet.cpp adds to GGUF (type number 36; llama.cpp has taken that number out of use).

A tensor is its codes, 2 bits each, in the order of the rows, and one scale: `count / 4` bytes of codes, then a little-endian float32 that multiplies,
then 28 bytes of 0, so that the next tensor is aligned. A field is the code + 1; 3 is never written.

| layout | block | bytes | byte `m` of a block has weights, from the highest bits down |
|---|---|---|---|
| `"x86"` | 128 | 32 | `m, m + 32, m + 64, m + 96` |
| `"arm"` | 64 | 16 | `m, m + 16, m + 32, m + 48` |

`"x86"` is what bitnet.cpp's converter in Python writes on every machine, what its files on the Hub have, what `llama-quantize` writes on x86, and wrote everywhere until
the kernels of November 2025. Since then the kernels and `llama-quantize` of a build for ARM with NEON read and write `"arm"`. Nothing in a file tells them
apart. (Without `ACT_PARALLEL`, which is on by default, a build for x86 has a third one, for four rows at a time, which is not written here.)

A row must be a whole number of blocks: the kernels leave out what is beyond the last whole one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np


NUMBER = 36
LAYOUTS = {"x86": 128, "arm": 64}
_TAIL = 32


def size(count: int) -> int:
    """Bytes of a tensor with so many weights."""
    return count // 4 + _TAIL


def pack_i2_s(pieces: Iterable[np.ndarray], scale: float, layout: str = "x86") -> Iterator[np.ndarray]:
    """The bytes of a tensor, in as many pieces and one more.

    Args:
        pieces: codes, int8 `[rows, columns]` each, values -1, 0, 1.
        scale: of the whole tensor.
        layout: key of [`LAYOUTS`].

    Raises:
        ValueError: rows are not a whole number of blocks, a code is none of the three, or the scale is not finite.
    """
    block = LAYOUTS[layout]
    if not np.isfinite(scale):
        raise ValueError("has a scale that is not finite")
    for codes in pieces:
        if codes.shape[1] % block:
            raise ValueError(f"has rows of {codes.shape[1]} weights, no multiple of {block}")
        if codes.size and (codes.min() < -1 or codes.max() > 1):
            raise ValueError("holds a code that is none of -1, 0, 1")
        fields = (codes.astype(np.int8) + 1).astype(np.uint8).reshape(-1, 4, block // 4)
        yield (fields[:, 0] << 6 | fields[:, 1] << 4 | fields[:, 2] << 2 | fields[:, 3]).reshape(-1)
    tail = np.zeros(_TAIL, np.uint8)
    tail[:4] = np.array([scale], "<f4").view(np.uint8)
    yield tail
