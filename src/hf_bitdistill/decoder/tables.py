"""Matrices that are not ternary as the decoder keeps them: floats, int8 rows, or int4 groups."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..checkpoint import CheckpointError
from ..ops import TablePacker
from . import native
from .files import TensorFiles


HEAD_BITS = (32, 16, 8, 4)

_KINDS = {
    torch.float32: native.TABLE_FLOAT32,
    torch.bfloat16: native.TABLE_BFLOAT16,
    torch.float16: native.TABLE_FLOAT16,
}


@dataclass(frozen=True)
class Table:
    """`data` is `[rows, columns]` floats, or the packed form (1-dimensional uint8) of kind `TABLE_PACKED`.

    `dtype` is that of the checkpoint.
    """

    kind: int
    data: Tensor
    rows: int
    columns: int
    dtype: torch.dtype


def load_table(files: TensorFiles, name: str, bits: int | None) -> Table:
    """Read a table in pieces and bring it to `bits` a value.

    Args:
        bits: `None`: as stored; 32; 16: the checkpoint's own 16-bit dtype (a float32 checkpoint becomes whichever 16-bit dtype changes it
            least); 8: int8, a scale a row; 4: int4, a scale for 32 columns.

    Raises:
        ValueError: another number of bits, or a value that is not finite (or too large for 4 bits).
    """
    rows, columns = files.headers[name].shape
    dtype = next(files.rows(name, 1))[1].dtype
    if bits in (8, 4):
        packer = TablePacker(rows, columns, bits)
        for _, piece in files.rows(name, multiple=TablePacker.ROWS):
            try:
                packer.add(piece)
            except ValueError as error:
                raise ValueError(f"{_place(files, name)}: {error}.") from None
        data = packer.packed()
    elif bits is None or bits in HEAD_BITS:
        target = _float_dtype(files, name, dtype, bits)
        data = torch.empty((rows, columns), dtype=target)
        for start, piece in files.rows(name):
            data[start : start + len(piece)] = finite(piece, files, name)
    else:
        raise ValueError(f"head_bits={bits!r} is not supported; choose one of {HEAD_BITS}.")
    return Table(_KINDS.get(data.dtype, native.TABLE_PACKED), data, rows, columns, dtype)


def _float_dtype(files: TensorFiles, name: str, stored: torch.dtype, bits: int | None) -> torch.dtype:
    if bits == 32 or (bits is None and stored.itemsize > 2):
        return torch.float32
    return stored if stored.itemsize == 2 else _least_lossy(files, name)


def finite(piece: Tensor, files: TensorFiles, name: str) -> Tensor:
    """A tensor, or a part of one, unless it holds a NaN or an infinity.

    Raises:
        CheckpointError: it does; names file and tensor.
    """
    # min and max of a tensor with a NaN are NaN: one pass over the piece instead of three.
    if not torch.isfinite(torch.stack(torch.aminmax(piece))).all():
        raise CheckpointError(f"{_place(files, name)}: a value is not finite.")
    return piece


def _place(files: TensorFiles, name: str) -> str:
    header = files.headers[name]
    return f"{header.file}: tensor {header.key!r}"


def _least_lossy(files: TensorFiles, name: str) -> torch.dtype:
    """bfloat16 for a table that came from bfloat16; float16, with 3 more bits, unless it overflows."""
    errors = {torch.float16: 0.0, torch.bfloat16: 0.0}
    for _, piece in files.rows(name):
        piece = piece.float()
        for dtype in errors:
            errors[dtype] += (piece.to(dtype).float() - piece).abs().sum().item()
    return min(errors, key=errors.get)
