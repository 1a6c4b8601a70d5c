import pytest
import torch
from transformers.integrations.bitnet import pack_weights as stock_pack

from hf_bitdistill.quantization import (
    PackedWeightError,
    check_packed_weight,
    check_weight_scale,
    pack_ternary,
    packed_rows,
    unpack_ternary,
)


def random_codes(rows, columns, seed=0):
    return torch.randint(-1, 2, (rows, columns), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 8, 31, 64])
@pytest.mark.parametrize("columns", [1, 7, 64])
def test_round_trip_of_any_shape(rows, columns):
    codes = random_codes(rows, columns, seed=rows)
    packed = pack_ternary(codes)
    assert packed.dtype == torch.uint8
    assert packed.shape == (packed_rows(rows), columns)
    assert torch.equal(unpack_ternary(packed, rows), codes.to(torch.int8))


def test_layout_bit_by_bit():
    # 8 rows: row r + 2k sits in bits 2k, 2k+1 of packed row r.
    codes = torch.tensor([[1], [0], [-1], [1], [0], [-1], [1], [0]])
    assert pack_ternary(codes).tolist() == [[0b10_01_00_10], [0b01_00_10_01]]


@pytest.mark.parametrize("rows", [4, 64, 100])
def test_layout_is_that_of_stock_transformers(rows):
    codes = random_codes(rows, 24, seed=rows)
    assert torch.equal(pack_ternary(codes), stock_pack(codes.clone().float()))


@pytest.mark.parametrize("bad", [torch.full((4, 4), 2), torch.full((4, 4), 0.5), torch.zeros(4), torch.zeros(0, 3)])
def test_what_is_not_ternary_is_not_packed(bad):
    with pytest.raises(ValueError, match="Ternary codes"):
        pack_ternary(bad)


def test_code_three_is_refused_wherever_it_is():
    for byte, field in [(0, 0), (5, 1), (11, 3)]:
        packed = pack_ternary(random_codes(16, 3))
        packed.view(-1)[byte] |= 0b11 << (2 * field)
        with pytest.raises(PackedWeightError, match="code 3"):
            check_packed_weight(packed, 16, 3)


def test_wrong_storage_is_refused():
    packed = pack_ternary(random_codes(16, 3))
    check_packed_weight(packed, 16, 3)
    for bad in (packed[:-1], packed.to(torch.int16), packed[:, :2]):
        with pytest.raises(PackedWeightError, match="stored as"):
            check_packed_weight(bad, 16, 3)


@pytest.mark.parametrize("byte", [0b01010101, 0, 0b10101010])
def test_a_constant_matrix_is_refused(byte):
    packed = torch.full((8, 16), byte, dtype=torch.uint8)
    with pytest.raises(PackedWeightError, match="constant"):
        check_packed_weight(packed, 32, 16)
    with pytest.raises(PackedWeightError, match="constant"):
        check_packed_weight(pack_ternary(torch.zeros(30, 16)), 30, 16)


@pytest.mark.parametrize(
    "value, message", [(float("nan"), "not finite"), (float("inf"), "not finite"), (0.0, "positive")]
)
def test_bad_scales_are_refused(value, message):
    scale = torch.ones(5)
    check_weight_scale(scale, (5,))
    scale[3] = value
    with pytest.raises(PackedWeightError, match=message):
        check_weight_scale(scale, (5,))
    with pytest.raises(PackedWeightError, match="expected floats"):
        check_weight_scale(torch.ones(5), (1,))
