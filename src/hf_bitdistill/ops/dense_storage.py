"""Ternary weights of a file with five in a byte, to the form that they have in memory."""

from __future__ import annotations

import torch
from torch import Tensor

from ..quantization import dense_bytes, packed_rows, unpack_dense
from . import binding
from .operators import num_threads


def unpack_stored(dense: Tensor, rows: int, columns: int) -> Tensor:
    """[`unpack_dense`], by the native library where there is one.

    Raises:
        PackedWeightError: wrong dtype or length.
    """
    library, _ = binding.load()
    expected = (dense_bytes(rows, columns),)
    whole = dense.dtype == torch.uint8 and tuple(dense.shape) == expected
    if library is None or dense.device.type != "cpu" or not whole:
        return unpack_dense(dense, rows, columns)
    dense = dense.contiguous()
    packed = torch.empty((packed_rows(rows), columns), dtype=torch.uint8)
    library.set_threads(num_threads())
    library.call(
        "ternary_from_dense", dense.data_ptr(), dense.numel(), rows, columns, packed.data_ptr(), packed.numel()
    )
    return packed
