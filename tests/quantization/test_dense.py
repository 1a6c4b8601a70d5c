"""Five ternary weights in a byte: round trips over odd shapes, the layout that is documented, bytes that stand for no weights."""

import pytest
import torch

from hf_bitdistill.quantization import (
    PackedWeightError,
    check_packed_weight,
    dense_bytes,
    pack_dense,
    pack_ternary,
    unpack_dense,
)
from hf_bitdistill.quantization import dense as module
from hf_bitdistill.quantization.dense import pack_codes, unpack_codes


SHAPES = [(1, 1), (1, 4), (2, 3), (3, 5), (5, 1), (7, 9), (64, 33), (93, 31), (5, 41), (40, 128)]
UNUSED = sorted(set(range(256)) - {-(-v * 256 // 243) for v in range(243)})


def random_codes(rows, columns):
    return torch.randint(-1, 2, (rows, columns), generator=torch.Generator().manual_seed(rows * 1000 + columns))


@pytest.mark.parametrize("piece", [8, module._PIECE])  # many pieces and one
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_round_trip(rows, columns, piece, monkeypatch):
    monkeypatch.setattr(module, "_PIECE", piece)
    packed = pack_ternary(random_codes(rows, columns))
    dense = pack_dense(packed, rows)
    assert dense.dtype == torch.uint8 and dense.shape == (dense_bytes(rows, columns),)
    # No shape wastes more than four weights.
    assert 0 <= 5 * dense.numel() - rows * columns <= 4
    assert torch.equal(unpack_dense(dense, rows, columns), packed)
    # A view into something else, at an odd byte, is as good.
    assert torch.equal(unpack_dense(torch.cat([dense[:1], dense])[1:], rows, columns), packed)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
@pytest.mark.parametrize("indexed", [6, module._INDEXED])  # many pieces and one
def test_codes_of_several_matrices(rows, columns, dtype, indexed, monkeypatch):
    monkeypatch.setattr(module, "_INDEXED", indexed)
    several = [random_codes(rows, columns).flatten(), -random_codes(rows, columns).flatten()]
    packed = torch.stack([pack_codes(codes.to(torch.int8)) for codes in several])
    assert torch.equal(packed[0], pack_dense(pack_ternary(random_codes(rows, columns)), rows))
    # Into a view with room behind it, which stays as it is.
    room = torch.full((2, rows * columns + 3), 7, dtype=dtype)
    unpack_codes(packed, room[:, : rows * columns])
    assert torch.equal(room[:, : rows * columns], torch.stack(several).to(dtype)) and room[:, -3:].eq(7).all()


@pytest.mark.parametrize(("rows", "columns"), [(3, 5), (7, 9)])
def test_the_layout_is_the_documented_one(rows, columns):
    codes = random_codes(rows, columns)
    length = dense_bytes(rows, columns)
    digits = torch.zeros(5 * length, dtype=torch.int64)
    digits[: codes.numel()] = codes.flatten() + 1
    number = 0
    for k in range(5):
        number = 3 * number + digits[k * length : (k + 1) * length]
    expected = -(-number * 256 // 243)
    assert torch.equal(pack_dense(pack_ternary(codes), rows).long(), expected)


def test_every_number_has_a_byte_and_13_bytes_have_none():
    assert len(UNUSED) == 13
    byte = torch.arange(256, dtype=torch.uint8)
    packed = unpack_dense(byte, 5, 256)  # row k: digit k
    refused = [i for i in range(256) if packed[0, i] & 3 == 3]
    assert refused == UNUSED
    # Of five rows the packed ones hold 0, 2, 4 and 1, 3.
    rows = [packed[0] & 3, packed[1] & 3, packed[0] >> 2 & 3, packed[1] >> 2 & 3, packed[0] >> 4 & 3]
    numbers = torch.zeros(256, dtype=torch.int64)
    for digit in rows:
        numbers = 3 * numbers + digit
    used = [i for i in range(256) if i not in UNUSED]
    assert numbers[used].tolist() == list(range(243))


@pytest.mark.parametrize("value", UNUSED)
def test_a_byte_of_no_weights_is_refused_wherever_it_is(value):
    dense = pack_dense(pack_ternary(random_codes(33, 50)), 33)
    for place in (0, 7, 200, dense.numel() - 1):
        damaged = dense.clone()
        damaged[place] = value
        with pytest.raises(PackedWeightError, match="invalid code 3"):
            check_packed_weight(unpack_dense(damaged, 33, 50), 33, 50)


def test_another_length_or_dtype_is_refused():
    packed = pack_ternary(random_codes(6, 7))
    dense = pack_dense(packed, 6)
    for wrong in (dense[:-1], dense.to(torch.int8), dense[None]):
        with pytest.raises(PackedWeightError, match=r"6 x 7 ternary weights are stored as torch.uint8 \[9\]"):
            unpack_dense(wrong, 6, 7)
    with pytest.raises(PackedWeightError, match="9 x 7 ternary weights"):
        pack_dense(packed, 9)
    with pytest.raises(PackedWeightError, match="invalid code 3"):
        pack_dense(packed | 3, 6)
