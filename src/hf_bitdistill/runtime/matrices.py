"""Matrices that are not ternary as the decoder keeps them: floats, int8 rows, or int4 groups. A checkpoint may hold floats, or the integers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..files.tensor_headers import CheckpointError
from ..ops import SplitPacker, TablePacker, pack_codes, pack_table
from ..ops import c_header as c
from ..ops.huge_pages import zeros
from ..ops.table_packing import FLOAT_KINDS
from ..quantization import check_table, dequantize_table, least_lossy_dtype, quantize_table
from .tensor_files import TensorFiles


HEAD_BITS = (32, 16, 8, 4)

SPLIT_FROM = 2 << 20
"""Bytes of an output head from which on it is worth reading less of it: what stays in a cache is read soon enough."""

SAMPLED_ROWS = 4096
"""Rows of an output head by which the columns of its first part are chosen, at least: so many are as good as all."""


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


@dataclass(frozen=True)
class StoredForm:
    """What a checkpoint of `table_bits` 8 or 4 does not say of a table in its files: the number of columns, and the dtype of the model."""

    columns: int
    dtype: torch.dtype


def load_table(
    files: TensorFiles,
    name: str,
    bits: int | None,
    stored: StoredForm | None = None,
    norm_weight: Tensor | None = None,
) -> Table:
    """Read a table in pieces and bring it to `bits` a value.

    Args:
        stored: the files hold integers, with scales beside them. They stay as they are unless `bits` is less: what rounding took away does not
            come back.
        bits: `None`: as stored; 32; 16: the checkpoint's own 16-bit dtype (a float32 checkpoint becomes whichever 16-bit dtype changes it
            least); 8: int8, a scale a row; 4: int4, a scale for 32 columns.
        norm_weight: it is an output head, behind a norm of this weight, float32 `[columns]`: one of 8 bits is kept in two parts, see
            [`hf_bitdistill.ops.SplitPacker`], unless it is small.

    Raises:
        ValueError: another number of bits, or a value that is not finite (or too large for 4 bits).
    """
    if stored is not None:
        return _load_integers(files, name, bits, stored, norm_weight)
    rows, columns = files.headers[name].shape
    dtype = next(files.rows(name, 1))[1].dtype
    if bits in (8, 4):
        return _round_floats(files, name, bits, dtype, norm_weight)
    if bits is None or bits in HEAD_BITS:
        target = _float_dtype(files, name, dtype, bits)
        data = zeros(rows * columns * target.itemsize).view(target).view(rows, columns)
        for start, piece in files.rows(name):
            data[start : start + len(piece)] = finite(piece, files, name)
    else:
        raise ValueError(f"head_bits={bits!r} is not supported; choose one of {HEAD_BITS}.")
    return Table(FLOAT_KINDS[data.dtype], data, rows, columns, dtype)


def _round_floats(files: TensorFiles, name: str, bits: int, dtype: torch.dtype, norm_weight: Tensor | None) -> Table:
    rows, columns = files.headers[name].shape

    def sample(stride: int) -> Tensor:
        # (Copies: a view keeps its file open, all of which then counts as memory.)
        pieces = [piece[-start % stride :: stride].clone() for start, piece in files.rows(name)]
        return pack_table(torch.cat(pieces), bits)

    try:
        packer = _packer(rows, columns, bits, norm_weight, sample)
        for _, piece in files.rows(name, multiple=TablePacker.ROWS):
            packer.add(piece)
    except ValueError as error:
        raise ValueError(f"{place(files, name)}: {error}.") from None
    return _packed(packer, rows, columns, dtype)


def _load_integers(
    files: TensorFiles, name: str, bits: int | None, stored: StoredForm, norm_weight: Tensor | None
) -> Table:
    header, columns = files.headers[name], stored.columns
    rows, own = header.shape[0], 8 if header.dtype == "I8" else 4
    kept = min(own, bits or own)

    def sample(stride: int) -> Tensor:
        pieces = [(codes.clone(), scale.clone()) for codes, scale in _integer_rows(files, name, columns, stride)]
        codes, scale = (torch.cat(parts) for parts in zip(*pieces, strict=True))
        return pack_codes(codes, scale, columns)

    packer = _packer(rows, columns, kept, norm_weight, sample)
    for codes, scale in _integer_rows(files, name, columns):
        if kept == own:
            packer.add_codes(codes, scale)
        else:
            packer.add(dequantize_table(codes, scale, columns))
    return _packed(packer, rows, columns, stored.dtype)


def _packer(
    rows: int, columns: int, bits: int, norm_weight: Tensor | None, sample: Callable[[int], Tensor]
) -> TablePacker | SplitPacker:
    """For a table, or for a large output head of 8 bits.

    Args:
        sample: takes a stride, and gives every `stride`-th row, packed in 8 bits.
    """
    if norm_weight is None or bits != 8 or rows * columns < SPLIT_FROM:
        return TablePacker(rows, columns, bits)
    return SplitPacker(rows, columns, sample(max(1, rows // SAMPLED_ROWS)), norm_weight)


def _integer_rows(files: TensorFiles, name: str, columns: int, stride: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
    """Every `stride`-th row of a table that is stored in integers, in pieces: codes and scales, views into the file.

    Raises:
        CheckpointError: they cannot be those of a table; names tensor and file.
    """
    scales = f"{name}_scale"
    for start, codes in files.rows(name, multiple=TablePacker.ROWS):
        # (Piece by piece too: the scales of 4 bits are an eighth of the table.)
        scale = files.part(scales, start, start + len(codes))
        first = -start % stride
        if first >= len(codes):
            continue
        codes, scale = codes[first::stride], scale[first::stride]
        try:
            check_table(codes, scale, columns)
        except ValueError as error:
            tensor, _, problem = str(error).partition(" ")
            raise CheckpointError(f"{place(files, scales if tensor == 'weight_scale' else name)} {problem}.") from None
        yield codes, scale


def _packed(packer: TablePacker | SplitPacker, rows: int, columns: int, dtype: torch.dtype) -> Table:
    kind = c.TABLE_SPLIT if isinstance(packer, SplitPacker) else c.TABLE_PACKED
    return Table(kind, packer.packed(), rows, columns, dtype)


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
