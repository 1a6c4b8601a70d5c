"""The dense storage form of ternary weights: five in a byte, 1.6 bits each.

The `N = R * C` weights of a matrix are taken row by row, and `P = ceil(N / 5)` bytes hold them: byte `i` has weights `i`, `i + P`, ...,
`i + 4 P`, each plus one, as the digits of a number `v` in base 3, the first the most significant. What is stored is the fraction
`v / 243` of a byte, `ceil(v * 256 / 243)`: times three, the next digit is what is carried out of the byte. So no shape wastes more than four
weights, decoding needs no division, and bytes that stand for no weights are told by what remains of them after five digits: 243 or more.
Digits beyond `N` are zero.

In memory every layer has the form of [`hf_bitdistill.quantization.packing`]; this one exists in files, and between processes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from .packing import VALUES_PER_BYTE, PackedWeightError, check_storage, packed_rows


WEIGHTS_PER_BYTE = 5
_NUMBERS = 3**WEIGHTS_PER_BYTE
_UNUSED = 256 - _NUMBERS
# Eight bytes are computed with at a time, as an integer of 64 bits; torch's operators on bytes are slower than that.
_WORD = 8
_LANES = 0x0001_0001_0001_0001  # of 16 bits: an even byte each, with room for a product; odd bytes have an integer of their own
_FIELDS = 0x0303_0303_0303_0303
_LOW_BITS = 0x5555_5555_5555_5555  # of the fields of two bits
# Bytes of a piece: what is in work stays in the cache of a core.
_PIECE = 1 << 17
# Bytes that are looked up at once: an index is four times as large.
_INDEXED = 1 << 22


def dense_bytes(rows: int, columns: int) -> int:
    """Number of bytes that hold a matrix of ternary weights."""
    return math.ceil(rows * columns / WEIGHTS_PER_BYTE)


def pack_dense(packed: Tensor, rows: int) -> Tensor:
    """uint8 `[ceil(rows / 4), C]`, as [`pack_ternary`] gives it, to uint8 `[ceil(rows * C / 5)]`.

    Raises:
        PackedWeightError: wrong dtype or number of packed rows, or a code that is no weight.
    """
    columns = packed.shape[-1]
    check_storage(packed, rows, columns)
    length = dense_bytes(rows, columns)
    codes = torch.zeros(WEIGHTS_PER_BYTE * length, dtype=torch.uint8, device=packed.device)
    flat, size = packed.reshape(-1), rows * columns
    for start, words in _words(flat):
        stop = min(start + _bytes(words), flat.numel())
        if (words & (words >> 1) & _LOW_BITS).any():
            raise PackedWeightError("holds the invalid code 3")
        for k in range(VALUES_PER_BYTE):
            field = ((words >> (2 * k)) & _FIELDS).view(torch.uint8)
            first, last = k * flat.numel() + start, min(k * flat.numel() + stop, size)
            if first < last:
                codes[first:last] = field[: last - first]
    return _of_digits(codes)


def pack_codes(codes: Tensor) -> Tensor:
    """Ternary codes, int8 `[N]` -> uint8 `[ceil(N / 5)]`; nothing is checked."""
    digits = torch.zeros(WEIGHTS_PER_BYTE * dense_bytes(1, len(codes)), dtype=torch.uint8, device=codes.device)
    torch.add(codes.view(torch.uint8), 1, out=digits[: len(codes)])  # (-1 is 255: the sum wraps)
    return _of_digits(digits)


def unpack_codes(dense: Tensor, codes: Tensor) -> None:
    """Write the codes of several matrices, uint8 `[M, ceil(N / 5)]`, into `codes` `[M, N]`, of any dtype; nothing is checked.

    A few operators on large tensors, whatever `M` is: on an accelerator their number is what costs.
    """
    length = dense.shape[1]
    piece = max(1, _INDEXED // len(dense))
    for start in range(0, length, piece):
        part = dense[:, start : start + piece]
        index = part.reshape(-1).int()
        for k, table in enumerate(_codes_of_bytes(dense.device)):
            room = codes[:, k * length + start : k * length + start + part.shape[1]]
            room.copy_(table.index_select(0, index).view(part.shape)[:, : room.shape[1]])


def _of_digits(digits: Tensor) -> Tensor:
    """Digits, uint8 `[5 * P]` -> bytes, uint8 `[P]`."""
    length = len(digits) // WEIGHTS_PER_BYTE
    stored, dense = _bytes_of_numbers(digits.device), torch.empty(length, dtype=torch.uint8, device=digits.device)
    fields = [_words(digits[k * length : (k + 1) * length]) for k in range(WEIGHTS_PER_BYTE)]
    for pieces in zip(*fields, strict=True):
        start, number = pieces[0]
        for _, digit in pieces[1:]:
            number = number * 3 + digit  # (at most 242 in each byte)
        count = min(_bytes(number), length - start)
        dense[start : start + count] = stored[number.view(torch.uint8)[:count].long()]
    return dense


def unpack_dense(dense: Tensor, rows: int, columns: int) -> Tensor:
    """Inverse of [`pack_dense`]. A byte that stands for no weights becomes code 3, which [`check_packed_weight`] refuses.

    Returns:
        uint8 `[ceil(rows / 4), columns]`.

    Raises:
        PackedWeightError: wrong dtype or length.
    """
    length = dense_bytes(rows, columns)
    if dense.dtype != torch.uint8 or tuple(dense.shape) != (length,):
        raise PackedWeightError(
            f"is {dense.dtype} {list(dense.shape)}, but {rows} x {columns} ternary weights are stored as torch.uint8 {[length]}"
        )
    stride = packed_rows(rows) * columns
    # (The rows that the last field of a packed matrix has too many are zero.)
    codes = torch.empty(
        max(WEIGHTS_PER_BYTE * length, VALUES_PER_BYTE * stride), dtype=torch.uint8, device=dense.device
    )
    for start, words in _words(dense):
        count = min(_bytes(words), length - start)
        for k, digit in enumerate(_digits(words)):
            codes[k * length + start : k * length + start + count] = digit[:count]
    codes[rows * columns :] = 0
    packed = torch.empty(stride, dtype=torch.uint8, device=dense.device)
    fields = [_words(codes[k * stride : (k + 1) * stride]) for k in range(VALUES_PER_BYTE)]
    for pieces in zip(*fields, strict=True):
        start, word = pieces[0]
        for k in range(1, VALUES_PER_BYTE):
            word |= pieces[k][1] << (2 * k)
        count = min(_bytes(word), stride - start)
        packed[start : start + count] = word.view(torch.uint8)[:count]
    return packed.view(-1, columns)


def _digits(words: Tensor) -> list[Tensor]:
    """The five digits of each byte, 3 for the first where there are none; uint8."""
    even, odd = words & (0xFF * _LANES), (words >> 8) & (0xFF * _LANES)
    digits = []
    for _ in range(WEIGHTS_PER_BYTE):
        even *= 3
        odd *= 3
        digits.append(((even >> 8) & (3 * _LANES)) | (odd & (0x300 * _LANES)))
        even &= 0xFF * _LANES
        odd &= 0xFF * _LANES
    even += _UNUSED * _LANES
    odd += _UNUSED * _LANES
    carried = ((even >> 8) & _LANES) | (odd & (0x100 * _LANES))
    digits[0] |= 3 * carried
    return [digit.view(torch.uint8) for digit in digits]


@lru_cache
def _bytes_of_numbers(device: torch.device) -> Tensor:
    """What stands for each number of five digits, uint8 `[243]`."""
    return torch.tensor([math.ceil(v * 256 / _NUMBERS) for v in range(_NUMBERS)], dtype=torch.uint8, device=device)


@lru_cache
def _codes_of_bytes(device: torch.device) -> Tensor:
    """The five codes of each byte, int8 `[5, 256]`."""
    every = torch.arange(256, dtype=torch.uint8).view(torch.int64)
    return (torch.stack(_digits(every)).view(torch.int8) - 1).to(device)


def _words(data: Tensor) -> Iterator[tuple[int, Tensor]]:
    """`(first byte, int64 words)` of each piece of some bytes; the words are copies, the last one filled up with zeros."""
    size = data.numel()
    piece = _PIECE if data.device.type == "cpu" else max(size, 1)
    for start in range(0, size, piece):
        count = min(piece, size - start)
        words = torch.empty(-(-count // _WORD), dtype=torch.int64, device=data.device)
        words[-1] = 0
        words.view(torch.uint8)[:count] = data[start : start + count]
        yield start, words


def _bytes(words: Tensor) -> int:
    return words.numel() * _WORD
