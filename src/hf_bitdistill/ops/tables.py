"""Float tables (embeddings, output heads) rounded to 8 or 4 bits, in the layout of the kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from ..quantization import quantize_int4_groups, quantize_int8_rows
from . import native as n
from .library import _ops, num_threads


_FORMATS = {8: n.INT8, 4: n.INT4}
_KINDS = {
    torch.float32: n.TABLE_FLOAT32,
    torch.bfloat16: n.TABLE_BFLOAT16,
    torch.float16: n.TABLE_FLOAT16,
}


class TablePacker:
    """Packs a table that is read in pieces; see `quantization/table.py` for the arithmetic.

    Args:
        rows, columns: of the whole table.
        bits: 8 (int8, a scale a row) or 4 (int4, a scale for 32 columns).

    Raises:
        ValueError: another number of bits.
    """

    ROWS = 16
    """Every piece but the last has a multiple of as many rows."""

    def __init__(self, rows: int, columns: int, bits: int):
        if bits not in _FORMATS:
            raise ValueError(f"bits={bits!r}: a table is packed with 8 or 4 bits")
        self._shape, self._bits, self._done = (rows, columns), bits, 0
        self._library = n.library()
        self._pieces: list[tuple[Tensor, Tensor]] = []
        if self._library is not None:
            if bits == 8:
                size = self._library.size("int8_packed_size", rows, columns)
            else:
                size = self._library.size("int4_packed_size", rows, columns, True)
            self._packed = torch.empty(size, dtype=torch.uint8)

    def add(self, piece: Tensor) -> None:
        """The next rows: floats `[rows of the piece, columns]` on a CPU.

        Raises:
            ValueError: a value is not finite, or too large for a float16 scale; or the piece does not fit.
        """
        count = piece.shape[0]
        end = self._done + count
        if piece.shape[1:] != self._shape[1:] or end > self._shape[0] or (count % self.ROWS and end != self._shape[0]):
            raise ValueError(f"rows {self._done} to {end} of {self._shape} are no piece of this table")
        if self._library is None:
            quantize = quantize_int8_rows if self._bits == 8 else quantize_int4_groups
            self._pieces.append(quantize(piece))
        else:
            self._add_native(piece.contiguous() if piece.dtype in _KINDS else piece.float().contiguous())
        self._done = end

    def _add_native(self, piece: Tensor) -> None:
        self._library.set_threads(num_threads())
        status = self._library.status(
            "table_pack_rows",
            _FORMATS[self._bits],
            piece.data_ptr(),
            piece.nbytes,
            _KINDS[piece.dtype],
            *self._shape,
            self._done,
            piece.shape[0],
            self._packed.data_ptr(),
            self._packed.numel(),
        )
        if status == n.ERROR_SCALE:
            raise ValueError("a value is not finite")
        if status == n.ERROR_ARGUMENT:
            raise ValueError("a value is too large for a scale in float16")
        self._library.check(status, "table_pack_rows")

    def packed(self) -> Tensor:
        """The packed table, an opaque uint8 tensor, when all rows were added."""
        if self._done != self._shape[0]:
            raise ValueError(f"{self._done} of {self._shape[0]} rows were added")
        if self._library is not None:
            return self._packed
        codes, scale = (torch.cat(parts) for parts in zip(*self._pieces, strict=True))
        return _ops.int8_pack(codes, scale) if self._bits == 8 else _ops.int4_pack(codes, scale, self._shape[1])


def pack_table(table: Tensor, bits: int) -> Tensor:
    """A float table `[R, C]` on a CPU rounded to `bits` (8 or 4), in the layout of the kernels: one opaque uint8 tensor.

    Raises:
        ValueError: another number of bits, or a value that is not finite or too large for a float16 scale.
    """
    packer = TablePacker(*table.shape, bits)
    packer.add(table.detach())
    return packer.packed()


__all__ = ["TablePacker", "pack_table"]
