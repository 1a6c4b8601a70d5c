"""The embedding table or output head as the decoder keeps it: floats, int8 rows, or int4 groups."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import int4_pack, int8_pack
from . import native
from .files import TensorFiles


HEAD_BITS = (32, 16, 8, 4)

_KINDS = {
    torch.float32: native.TABLE_FLOAT32,
    torch.bfloat16: native.TABLE_BFLOAT16,
    torch.float16: native.TABLE_FLOAT16,
}
_INT4_GROUP = 32


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


def load_table(files: TensorFiles, name: str, bits: int) -> Table:
    """Read a table in pieces and bring it to `bits` a value.

    Args:
        bits: 32; 16: the checkpoint's own 16-bit dtype (a float32 checkpoint becomes whichever 16-bit dtype changes it
            least); 8: int8, a scale a row; 4: int4, a scale for 32 columns.

    Raises:
        ValueError: another number of bits, or a value that is not finite.
    """
    rows, columns = files.headers[name].shape
    dtype = next(files.rows(name, 1))[1].dtype
    if bits == 8:
        data = _int8(files, name, rows, columns)
    elif bits == 4:
        data = _int4(files, name, rows, columns)
    elif bits in HEAD_BITS:
        target = torch.float32 if bits == 32 else dtype if dtype.itemsize == 2 else _least_lossy(files, name)
        data = torch.empty((rows, columns), dtype=target)
        for start, piece in files.rows(name):
            data[start : start + len(piece)] = _finite(piece, files, name)
    else:
        raise ValueError(f"head_bits={bits!r} is not supported; choose one of {HEAD_BITS}.")
    return Table(native.TABLE_PACKED if bits < 16 else _KINDS[data.dtype], data, rows, columns, dtype)


def _finite(piece: Tensor, files: TensorFiles, name: str) -> Tensor:
    # min and max of a tensor with a NaN are NaN: one pass over the piece instead of three.
    if not torch.isfinite(torch.stack(torch.aminmax(piece))).all():
        header = files.headers[name]
        raise ValueError(f"{header.file}: tensor {header.key!r} holds a value that is not finite.")
    return piece


def _least_lossy(files: TensorFiles, name: str) -> torch.dtype:
    """bfloat16 for a table that came from bfloat16; float16, with 3 more bits, unless it overflows."""
    errors = {torch.float16: 0.0, torch.bfloat16: 0.0}
    for _, piece in files.rows(name):
        piece = piece.float()
        for dtype in errors:
            errors[dtype] += (piece.to(dtype).float() - piece).abs().sum().item()
    return min(errors, key=errors.get)


def _int8(files: TensorFiles, name: str, rows: int, columns: int) -> Tensor:
    codes = torch.empty((rows, columns), dtype=torch.int8)
    scales = torch.empty(rows)
    for start, piece in files.rows(name):
        piece = _finite(piece, files, name).float()
        scale = piece.abs().amax(dim=1) / 127
        scale[scale == 0] = 1.0  # a row of zeros: any scale will do
        stop = start + len(piece)
        torch.round(piece / scale[:, None], out=piece)
        codes[start:stop], scales[start:stop] = piece.clamp_(-127, 127), scale
    return int8_pack(codes, scales)


def _int4(files: TensorFiles, name: str, rows: int, columns: int) -> Tensor:
    groups = (columns + _INT4_GROUP - 1) // _INT4_GROUP
    storage = torch.empty((rows, (columns + 1) // 2), dtype=torch.uint8)
    scales = torch.empty((rows, groups), dtype=torch.float16)
    for start, piece in files.rows(name):
        piece = _finite(piece, files, name).float()
        piece = F.pad(piece, (0, groups * _INT4_GROUP - columns)).view(len(piece), groups, _INT4_GROUP)
        # The value of largest magnitude becomes -8, the end of the range that has one step more.
        largest = piece.gather(2, piece.abs().argmax(dim=2, keepdim=True))
        scale = (largest / -8).clamp_(-65504, 65504).half()
        divisor = torch.where(scale == 0, 1.0, scale.float())
        codes = (piece / divisor).round_().clamp_(-8, 7).add_(8).to(torch.uint8)
        codes = codes.view(len(piece), -1)[:, :columns]
        codes = F.pad(codes, (0, columns % 2), value=8)
        stop = start + len(piece)
        storage[start:stop] = codes[:, 0::2] | (codes[:, 1::2] << 4)
        scales[start:stop] = scale.squeeze(2)
    return int4_pack(storage, scales, columns)
