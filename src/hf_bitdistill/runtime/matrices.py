"""Matrices that are not ternary as the decoder keeps them: floats, int8 rows, or int4 groups. A checkpoint may hold floats, or the integers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..files.tensor_headers import CheckpointError
from ..ops import TablePacker, packed_bits, split_table
from ..ops import c_header as c
from ..ops.huge_pages import zeros
from ..ops.table_packing import FLOAT_KINDS
from ..quantization import check_table, dequantize_table, least_lossy_dtype, quantize_table
from .tensor_files import TensorFiles


HEAD_BITS = (32, 16, 8, 4)

SPLIT_FROM = 2 << 20
"""Bytes of an output head from which on it is worth reading less of it: what stays in a cache is read soon enough."""


@dataclass(frozen=True)
class Table:
    """`data` is `[rows, columns]` floats, or the packed form (1-dimensional uint8) of kind `TABLE_PACKED` or `TABLE_SPLIT`.

    `dtype` is that of the checkpoint's floats.
    """

    kind: int
    data: Tensor
    rows: int
    columns: int
    dtype: torch.dtype


def split_head(table: Table, norm_weight: Tensor) -> Table:
    """An output head as the decoder keeps it: one of 8 bits in two parts, see [`hf_bitdistill.ops.split_table`], unless it is small.

    Args:
        norm_weight: of the norm in front of it, float32 `[columns]`.
    """
    if table.kind != c.TABLE_PACKED or table.data.numel() < SPLIT_FROM or packed_bits(table.data) != 8:
        return table
    return replace(table, kind=c.TABLE_SPLIT, data=split_table(table.data, norm_weight))


@dataclass(frozen=True)
class StoredForm:
    """What a checkpoint of `table_bits` 8 or 4 does not say of a table in its files: the number of columns, and the dtype of the model."""

    columns: int
    dtype: torch.dtype


def load_table(files: TensorFiles, name: str, bits: int | None, stored: StoredForm | None = None) -> Table:
    """Read a table in pieces and bring it to `bits` a value.

    Args:
        stored: the files hold integers, with scales beside them. They stay as they are unless `bits` is less: what rounding took away does not
            come back.
        bits: `None`: as stored; 32; 16: the checkpoint's own 16-bit dtype (a float32 checkpoint becomes whichever 16-bit dtype changes it
            least); 8: int8, a scale a row; 4: int4, a scale for 32 columns.

    Raises:
        ValueError: another number of bits, or a value that is not finite (or too large for 4 bits).
    """
    if stored is not None:
        return _load_integers(files, name, bits, stored)
    rows, columns = files.headers[name].shape
    dtype = next(files.rows(name, 1))[1].dtype
    if bits in (8, 4):
        packer = TablePacker(rows, columns, bits)
        for _, piece in files.rows(name, multiple=TablePacker.ROWS):
            try:
                packer.add(piece)
            except ValueError as error:
                raise ValueError(f"{place(files, name)}: {error}.") from None
        data = packer.packed()
    elif bits is None or bits in HEAD_BITS:
        target = _float_dtype(files, name, dtype, bits)
        data = zeros(rows * columns * target.itemsize).view(target).view(rows, columns)
        for start, piece in files.rows(name):
            data[start : start + len(piece)] = finite(piece, files, name)
    else:
        raise ValueError(f"head_bits={bits!r} is not supported; choose one of {HEAD_BITS}.")
    return Table(FLOAT_KINDS.get(data.dtype, c.TABLE_PACKED), data, rows, columns, dtype)


def _load_integers(files: TensorFiles, name: str, bits: int | None, stored: StoredForm) -> Table:
    header, scales = files.headers[name], f"{name}_scale"
    rows, own = header.shape[0], 8 if header.dtype == "I8" else 4
    packer = TablePacker(rows, stored.columns, min(own, bits or own))
    for start, codes in files.rows(name, multiple=TablePacker.ROWS):
        # (Piece by piece too: the scales of 4 bits are an eighth of the table.)
        part = files.part(scales, start, start + len(codes))
        try:
            check_table(codes, part, stored.columns)
        except ValueError as error:
            tensor, _, problem = str(error).partition(" ")
            raise CheckpointError(f"{place(files, scales if tensor == 'weight_scale' else name)} {problem}.") from None
        if packer.bits == own:
            packer.add_codes(codes, part)
        else:
            packer.add(dequantize_table(codes, part, stored.columns))
    return Table(c.TABLE_PACKED, packer.packed(), rows, stored.columns, stored.dtype)


def _float_dtype(files: TensorFiles, name: str, stored: torch.dtype, bits: int | None) -> torch.dtype:
    if bits == 32 or (bits is None and stored.itemsize > 2):
        return torch.float32
    return stored if stored.itemsize == 2 else least_lossy_dtype(piece for _, piece in files.rows(name))


def finite(piece: Tensor, files: TensorFiles, name: str) -> Tensor:
    """A tensor, or a part of one, unless it holds a NaN or an infinity.

    Raises:
        CheckpointError: it does; names file and tensor.
    """
    # min and max of a tensor with a NaN are NaN: one pass over the piece instead of three.
    if not torch.isfinite(torch.stack(torch.aminmax(piece))).all():
        raise CheckpointError(f"{place(files, name)}: a value is not finite.")
    return piece


def round_table(files: TensorFiles, name: str, bits: int) -> tuple[Tensor, Tensor]:
    """Codes and scales of a table that is stored in floats, see [`hf_bitdistill.quantization.quantize_table`].

    Raises:
        CheckpointError: a value is not finite, or too large for 4 bits.
    """
    pieces = []
    for _, piece in files.rows(name):
        try:
            pieces.append(quantize_table(piece, bits))
        except ValueError as error:
            raise CheckpointError(f"{place(files, name)}: {error}.") from None
    codes, scale = (torch.cat(parts) for parts in zip(*pieces, strict=True))
    return codes, scale


def place(files: TensorFiles, name: str) -> str:
    """File and tensor, for messages."""
    header = files.headers[name]
    return f"{header.file}: tensor {header.key!r}"
