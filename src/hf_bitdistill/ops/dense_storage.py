"""Ternary weights of files: whether they are any, and from five in a byte to the form that they have in memory, and back."""

from __future__ import annotations

import torch
from torch import Tensor

from ..quantization import PackedWeightError, check_packed_weight, dense_bytes, pack_dense, packed_rows, unpack_dense
from . import binding
from .c_header import ERROR_CODE
from .operators import num_threads


def unpack_stored(dense: Tensor, rows: int, columns: int) -> Tensor:
    """[`unpack_dense`], by the native library where there is one.

    Raises:
        PackedWeightError: wrong dtype or length.
    """
    library = _library(dense, (dense_bytes(rows, columns),))
    if library is None:
        return unpack_dense(dense, rows, columns)
    dense = dense.contiguous()
    packed = torch.empty((packed_rows(rows), columns), dtype=torch.uint8)
    library.call(
        "ternary_from_dense", dense.data_ptr(), dense.numel(), rows, columns, packed.data_ptr(), packed.numel()
    )
    return packed


def pack_stored(packed: Tensor, rows: int) -> Tensor:
    """[`pack_dense`], by the native library where there is one.

    Raises:
        PackedWeightError: wrong dtype or number of packed rows, or a code that is no weight.
    """
    columns = packed.shape[-1]
    library = _library(packed, (packed_rows(rows), columns))
    if library is None:
        return pack_dense(packed, rows)
    packed = packed.contiguous()
    dense = torch.empty(dense_bytes(rows, columns), dtype=torch.uint8)
    sizes = (packed.data_ptr(), packed.numel(), rows, columns, dense.data_ptr(), dense.numel())
    status = library.status("ternary_to_dense", *sizes)
    if status == ERROR_CODE:
        raise PackedWeightError("holds the invalid code 3")
    library.check(status, "ternary_to_dense")
    return dense


def check_stored(packed: Tensor, rows: int, columns: int) -> None:
    """[`check_packed_weight`], by the native library where there is one.

    Raises:
        PackedWeightError: wrong dtype or shape, code 3 in a field, or all weights equal.
    """
    library = _library(packed, (packed_rows(rows), columns))
    if library is None or not packed.is_contiguous():
        return check_packed_weight(packed, rows, columns)
    status = library.status("ternary_check", packed.data_ptr(), packed.numel())
    if status not in (0, ERROR_CODE):
        library.check(status, "ternary_check")
    check_packed_weight(packed, rows, columns, valid=status == 0)


def _library(weight: Tensor, shape: tuple[int, ...]) -> binding.NativeLibrary | None:
    """The native library, if it takes a weight that should have this shape."""
    library, _ = binding.load()
    if library is None or weight.device.type != "cpu" or weight.dtype != torch.uint8 or tuple(weight.shape) != shape:
        return None
    library.set_threads(num_threads())
    return library
