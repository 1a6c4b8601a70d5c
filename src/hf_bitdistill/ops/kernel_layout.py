"""The packed form of a weight, as plain torch code: one self-describing uint8 tensor (layout: `csrc/kernels/matrix.h`).

What the native library packs, this reads, and the other way round, byte for byte. The form of five ternary weights in a byte (layout:
`csrc/kernels/dense.h`) is only read.
"""

from __future__ import annotations

import functools
import struct
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .c_header import ABI_VERSION, INT4, INT8, TERNARY, TERNARY_DENSE
from .c_header import ALIGNMENT as _ALIGNMENT
from .huge_pages import zeros


_MAGIC = 0x6C6C697473646962
_HEADER = struct.Struct("<QIiqqqi5i")
_PANEL, _STEP, _CHUNK = 16, 4, 16
_BITS = {TERNARY: 2, INT8: 8, INT4: 4, TERNARY_DENSE: 2}  # (of a dense one once it is widened)
_ZERO_POINT = {TERNARY: 1, INT8: 0, INT4: 8, TERNARY_DENSE: 1}
_DENSE_CHUNKS, _DENSE_VECTORS = 5, 4  # so many chunks in so many vectors


def _up(a: int, b: int) -> int:
    return (a + b - 1) // b * b


class _Layout(NamedTuple):
    scales: int
    panels: int
    total: int


@dataclass
class PackedWeight:
    """Header of a packed weight.

    Attributes:
        group_size: columns that share a scale, 0: all.
        tensor_scale: one scale for all rows.
    """

    format: int
    rows: int
    cols: int
    group_size: int = 0
    tensor_scale: bool = False

    @property
    def groups(self) -> int:
        return 1 if self.group_size == 0 else (self.cols + self.group_size - 1) // self.group_size

    @property
    def scale_dtype(self) -> torch.dtype:
        return torch.float16 if self.format == INT4 else torch.float32

    @property
    def layout(self) -> _Layout:
        """Byte positions of the parts."""
        panels = _up(self.rows, _PANEL) // _PANEL
        scales = _PANEL if self.tensor_scale else panels * self.groups * _PANEL
        data = _ALIGNMENT + _up(scales * self.scale_dtype.itemsize, _ALIGNMENT)
        chunks = _up(self.cols, _CHUNK) // _CHUNK
        if self.format == TERNARY_DENSE:
            chunks -= chunks // _DENSE_CHUNKS
        return _Layout(_ALIGNMENT, data, data + panels * _PANEL * chunks * _CHUNK * _BITS[self.format] // 8)

    def densest(self) -> PackedWeight:
        """That of the same ternary weights with five in a byte; itself where that form does not exist or gains nothing."""
        has_form = (
            self.format == TERNARY and self.group_size == 0 and _up(self.cols, _CHUNK) // _CHUNK >= _DENSE_CHUNKS
        )
        return replace(self, format=TERNARY_DENSE) if has_form else self


def read_header(packed: Tensor) -> PackedWeight:
    """The header of a packed weight.

    Raises:
        ValueError: `packed` is no packed weight, or has another size than its header says.
    """
    if packed.dtype != torch.uint8 or packed.ndim != 1 or packed.numel() < _HEADER.size:
        raise ValueError("not a packed weight")
    magic, version, kind, rows, cols, group, tensor, *_ = _HEADER.unpack(bytes(packed[:64].tolist()))
    if magic != _MAGIC or version != ABI_VERSION or kind not in _BITS or rows < 1 or cols < 1 or group < 0:
        raise ValueError("not a packed weight of this version")
    header = PackedWeight(kind, rows, cols, group, bool(tensor))
    if header.layout.total != packed.numel():
        raise ValueError(f"a packed weight of {packed.numel()} bytes should have {header.layout.total}")
    return header


def empty(header: PackedWeight) -> Tensor:
    """A packed weight whose scales and codes are zero."""
    out = zeros(header.layout.total)
    fields = _HEADER.pack(
        _MAGIC, ABI_VERSION, header.format, header.rows, header.cols, header.group_size,
        header.tensor_scale, 0, 0, 0, 0, 0,
    )  # fmt: skip
    out[: len(fields)] = torch.frombuffer(bytearray(fields), dtype=torch.uint8)
    return out


def put_rows(packed: Tensor, header: PackedWeight, piece: Tensor, first_row: int) -> None:
    """Copy rows that were packed by themselves to their place in a weight with a scale for each row or group.

    Args:
        piece: packed with the same format and number of columns.
        first_row: a multiple of 16.
    """
    source = read_header(piece)
    panels = _up(source.rows, _PANEL) // _PANEL
    scales = panels * header.groups * _PANEL * header.scale_dtype.itemsize
    for start, size, origin in (
        (header.layout.scales, scales, source.layout.scales),
        (header.layout.panels, source.layout.total - source.layout.panels, source.layout.panels),
    ):
        at = start + first_row // _PANEL * (size // panels)
        packed[at : at + size] = piece[origin : origin + size]


def pack(header: PackedWeight, codes: Tensor, scale: Tensor) -> Tensor:
    """Lay out a weight.

    Args:
        codes: `[rows, cols]`, the value plus 1 (ternary) or 8 (int4), or int8 itself.
        scale: as many as the header says.
    """
    layout = header.layout
    out = empty(header)
    dtype = header.scale_dtype
    panels = _up(header.rows, _PANEL) // _PANEL
    if header.tensor_scale:
        scales = scale.reshape(1).to(dtype).expand(_PANEL)
    else:
        scales = torch.zeros((panels * _PANEL, header.groups), dtype=dtype)
        scales[: header.rows] = scale.reshape(header.rows, header.groups)
        scales = scales.view(panels, _PANEL, header.groups).transpose(1, 2)
    scales = scales.contiguous().view(torch.uint8).reshape(-1)
    out[layout.scales : layout.scales + scales.numel()] = scales

    bits = _BITS[header.format]
    padded = torch.zeros((panels * _PANEL, _up(header.cols, _CHUNK)), dtype=torch.uint8)
    padded[: header.rows, : header.cols] = codes.view(torch.uint8)
    fields_per_byte = 8 // bits
    # [panel, lane, vector, field, byte] -> [panel, vector, field, lane, byte]
    steps = padded.view(panels, _PANEL, -1, fields_per_byte, _STEP).permute(0, 2, 3, 1, 4)
    data = torch.zeros((panels, steps.shape[1], _PANEL, _STEP), dtype=torch.uint8)
    for field in range(fields_per_byte):
        data |= steps[:, :, field] << (bits * field)
    out[layout.panels :] = data.reshape(-1)
    return out


def unpack_rows(packed: Tensor, header: PackedWeight, start: int, stop: int) -> Tensor:
    """Values of rows `start` to `stop`, int8 `[stop - start, cols]`. `start` is a multiple of 16."""
    bits = _BITS[header.format]
    panels = _up(header.rows, _PANEL) // _PANEL
    data = packed[header.layout.panels :].view(panels, -1, _PANEL, _STEP)[
        start // _PANEL : _up(stop, _PANEL) // _PANEL
    ]
    if header.format == TERNARY_DENSE:
        data = _widened(data, _up(header.cols, _CHUNK) // _CHUNK)
    fields = torch.stack([(data >> (bits * field)) & (2**bits - 1) for field in range(8 // bits)], dim=2)
    values = fields.permute(0, 3, 1, 2, 4).reshape(data.shape[0] * _PANEL, -1)[: stop - start, : header.cols]
    return values.contiguous().view(torch.int8) - _ZERO_POINT[header.format]


def _widened(data: Tensor, chunks: int) -> Tensor:
    """Dense panels `[panels, vectors, 16, 4]` with two bits a weight, `[panels, chunks, 16, 4]`."""
    steps, fifth = _dense_code()
    groups, shape = chunks // _DENSE_CHUNKS, data.shape[2:]
    coded = data[:, : groups * _DENSE_VECTORS].reshape(data.shape[0], groups, _DENSE_VECTORS, *shape).long()
    last: Any = sum(fifth[coded[:, :, j]] << (2 * j) for j in range(_DENSE_VECTORS))
    whole = torch.cat([steps[coded], last[:, :, None]], dim=2) if groups else steps[coded]
    return torch.cat([whole.reshape(data.shape[0], -1, *shape), data[:, groups * _DENSE_VECTORS :]], dim=1)


@functools.cache
def _dense_code() -> tuple[Tensor, Tensor]:
    """Of each byte the first four digits as a byte of two bits each, and the fifth digit."""
    steps, fifth = torch.zeros((2, 256), dtype=torch.uint8)
    place = 0
    for pair in range(9):
        # 64 of 81 combinations have a place in the low six bits; the other 17, three for each value of the fifth digit.
        found = 9 - min(2, 17 - 2 * pair)
        for rest in range(9):
            for digit in range(3):
                byte = digit << 6 | place + rest if rest < found else 3 << 6 | place + 3 * (rest - found) + digit
                steps[byte] = pair % 3 | pair // 3 << 2 | rest % 3 << 4 | rest // 3 << 6
                fifth[byte] = digit
        place += found
    return steps, fifth


def scales_of(packed: Tensor, header: PackedWeight) -> Tensor:
    """float32 scales `[rows, groups]`, or `[1, 1]`."""
    layout = header.layout
    stored = packed[layout.scales : layout.panels].view(header.scale_dtype).float()
    if header.tensor_scale:
        return stored[:1].view(1, 1)
    panels = _up(header.rows, _PANEL) // _PANEL
    scale = stored[: panels * _PANEL * header.groups].view(panels, header.groups, _PANEL).transpose(1, 2)
    return scale.reshape(-1, header.groups)[: header.rows]
