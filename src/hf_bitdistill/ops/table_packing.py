"""Tables (embeddings, output heads) of 8 or 4 bits in the layout of the kernels, rounded from floats or as a checkpoint stores them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..quantization import INT4_GROUP, quantize_table
from . import binding as n
from . import c_header as c
from . import kernel_layout as form
from .operators import _ops, num_threads


#: How the library calls a table of floats.
FLOAT_KINDS = {
    torch.float32: c.TABLE_FLOAT32,
    torch.bfloat16: c.TABLE_BFLOAT16,
    torch.float16: c.TABLE_FLOAT16,
}

_FORMATS = {8: c.INT8, 4: c.INT4}


class TablePacker:
    """Packs a table that is read in pieces; see `quantization/integer_tables.py` for the arithmetic.

    Args:
        rows, columns: of the whole table.
        bits: 8 (int8, a scale a row) or 4 (int4, a scale for 32 columns); an attribute too.

    Raises:
        ValueError: another number of bits.
    """

    ROWS = 16
    """Every piece but the last has a multiple of as many rows."""

    def __init__(self, rows: int, columns: int, bits: int):
        if bits not in _FORMATS:
            raise ValueError(f"bits={bits!r}: a table is packed with 8 or 4 bits")
        self._shape, self.bits, self._done = (rows, columns), bits, 0
        self._library = n.library()
        self._header = form.PackedWeight(_FORMATS[bits], rows, columns, 0 if bits == 8 else INT4_GROUP)
        self._packed = form.empty(self._header)

    def add(self, piece: Tensor) -> None:
        """The next rows: floats `[rows of the piece, columns]` on a CPU.

        Raises:
            ValueError: a value is not finite, or too large for a float16 scale; or the piece does not fit.
        """
        self._check_place(piece.shape[0], piece.shape[1:] == self._shape[1:])
        if self._library is None:
            self._put(*quantize_table(piece, self.bits))
        else:
            floats = piece if piece.dtype in FLOAT_KINDS else piece.float()
            self._add_native(self._library, floats.contiguous())
        self._done += piece.shape[0]

    def add_codes(self, codes: Tensor, scale: Tensor) -> None:
        """The next rows, as [`hf_bitdistill.quantization.quantize_table`] rounds them.

        Raises:
            ValueError: the piece does not fit, or cannot be of such a table.
        """
        width = self._shape[1] if self.bits == 8 else -(-self._shape[1] // 2)
        self._check_place(codes.shape[0], codes.shape[1:] == (width,))
        self._put(codes, scale)
        self._done += codes.shape[0]

    def _check_place(self, count: int, fits: bool) -> None:
        end = self._done + count
        if not fits or end > self._shape[0] or (count % self.ROWS and end != self._shape[0]):
            raise ValueError(f"rows {self._done} to {end} of {self._shape} are no piece of this table")

    def _put(self, codes: Tensor, scale: Tensor) -> None:
        form.put_rows(self._packed, self._header, pack_codes(codes, scale, self._shape[1]), self._done)

    def _add_native(self, library: n.NativeLibrary, piece: Tensor) -> None:
        library.set_threads(num_threads())
        status = library.status(
            "table_pack_rows",
            _FORMATS[self.bits],
            piece.data_ptr(),
            piece.nbytes,
            FLOAT_KINDS[piece.dtype],
            *self._shape,
            self._done,
            piece.shape[0],
            self._packed.data_ptr(),
            self._packed.numel(),
        )
        if status == c.ERROR_SCALE:
            raise ValueError("a value is not finite")
        if status == c.ERROR_ARGUMENT:
            raise ValueError("a value is too large for a scale in float16")
        library.check(status, "table_pack_rows")

    def packed(self) -> Tensor:
        """The packed table, an opaque uint8 tensor, when all rows were added."""
        _check_complete(self._done, self._shape[0])
        return self._packed


def pack_codes(codes: Tensor, scale: Tensor, columns: int) -> Tensor:
    """A table as [`hf_bitdistill.quantization.quantize_table`] rounds it, in the layout of the kernels: one opaque uint8 tensor."""
    return _ops.int8_pack(codes, scale) if codes.dtype == torch.int8 else _ops.int4_pack(codes, scale, columns)


def pack_table(table: Tensor, bits: int) -> Tensor:
    """A float table `[R, C]` on a CPU rounded to `bits` (8 or 4), in the layout of the kernels: one opaque uint8 tensor.

    Raises:
        ValueError: another number of bits, or a value that is not finite or too large for a float16 scale.
    """
    rows, columns = table.shape
    packer = TablePacker(rows, columns, bits)
    packer.add(table.detach())
    return packer.packed()


class SplitPacker:
    """Packs a table of 8 bits in two parts, the first of which is enough to see of most rows that they are not the likeliest token. It gives the
    same outputs as one of a [`TablePacker`], bit for bit, and has 5 bytes a row more; the native library alone reads it. The whole table exists
    in no other form on the way.

    Args:
        rows, columns: of the whole table.
        sample: a packed table of 8 bits of some of its rows, by which the columns are chosen that the first part holds whole.
        norm_weight: of the norm in front of the output head, float32 `[C]`.

    Raises:
        NativeLibraryError: there is no native library, or it refuses the sample.
    """

    def __init__(self, rows: int, columns: int, sample: Tensor, norm_weight: Tensor | None = None):
        library, reason = n.load()
        if library is None:
            raise n.NativeLibraryError(reason)
        self._library, self._shape, self._done = library, (rows, columns), 0
        self._split = torch.empty(library.size("split_size", rows, columns), dtype=torch.uint8)
        norm = (None, 0) if norm_weight is None else (norm_weight.data_ptr(), norm_weight.numel())
        into = (self._split.data_ptr(), self._split.numel())
        library.call("split_begin", rows, sample.data_ptr(), sample.numel(), *norm, *into)

    def add(self, piece: Tensor) -> None:
        """The next rows, floats: see [`TablePacker.add`].

        Raises:
            ValueError: a value is not finite.
        """
        self._put(pack_table(piece, 8), piece.shape[0])

    def add_codes(self, codes: Tensor, scale: Tensor) -> None:
        """The next rows, rounded: see [`TablePacker.add_codes`]."""
        self._put(pack_codes(codes, scale, self._shape[1]), codes.shape[0])

    def _put(self, packed: Tensor, count: int) -> None:
        into = (self._split.data_ptr(), self._split.numel())
        self._library.set_threads(num_threads())
        self._library.call("split_pack_rows", packed.data_ptr(), packed.numel(), self._done, *into)
        self._done += count

    def packed(self) -> Tensor:
        """The table, an opaque uint8 tensor, when all rows were added.

        Raises:
            ValueError: they were not.
        """
        _check_complete(self._done, self._shape[0])
        return self._split


def _check_complete(done: int, rows: int) -> None:
    if done != rows:
        raise ValueError(f"{done} of {rows} rows were added")


__all__ = ["SplitPacker", "TablePacker", "pack_codes", "pack_table"]
