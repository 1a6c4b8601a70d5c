"""Rows of a matrix in pieces that stay in a CPU's caches while several operators pass over them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn


# Of a thread: 256 KB of float32, of which a few pieces fit the second cache of a core. A multiple of what torch's operators share.
_ELEMENTS = 2**16


_KINDS = (Tensor, nn.Parameter)


def has_values(tensor: Tensor) -> bool:
    """Whether a tensor is of torch's own kind, in memory: neither in shards nor a fake one."""
    return type(tensor) in _KINDS


def is_plain(*tensors: Tensor) -> bool:
    """Whether these are tensors of torch's own kind, or fakes of such, and no compiler looks, which makes passes of its own."""
    return not torch.compiler.is_compiling() and all(
        has_values(tensor) or hasattr(tensor, "fake_mode") for tensor in tensors
    )


def row_pieces(matrix: Tensor) -> Iterator[slice]:
    """Slices that cover the rows of `[N, C]`. One elsewhere than on a CPU, where the number of operators is what costs."""
    rows, columns = matrix.shape
    if matrix.device.type != "cpu" or not has_values(matrix):
        yield slice(0, rows)
        return
    step = max(1, _ELEMENTS * torch.get_num_threads() // max(columns, 1))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def scratch_for(matrix: Tensor) -> Tensor:
    """Room in float32 for the largest of the [`row_pieces`] of `matrix`."""
    rows = next((piece.stop - piece.start for piece in row_pieces(matrix)), 0)
    return matrix.new_empty((rows, matrix.shape[1]), dtype=torch.float32)
