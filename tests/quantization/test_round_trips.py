"""Properties of packing, of the quantiser, of its inverse and of integer tables, on what hypothesis makes."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_bitdistill.quantization import (
    PackedWeightError,
    check_packed_weight,
    check_table,
    dense_bytes,
    dequantize_table,
    effective_weight,
    expand_weight_scale,
    fold_ternary,
    least_squares_start,
    pack_dense,
    pack_ternary,
    packed_rows,
    quantize_table,
    table_shapes,
    ternarize,
    unpack_dense,
    unpack_ternary,
    weight_scale_shape,
)
from properties import BUDGET, GRANULARITIES, codes, weights


# ---- Packing ----


@BUDGET
@given(codes())
def test_two_bits_a_weight(matrix):
    rows, columns = matrix.shape
    packed = pack_ternary(matrix)
    assert packed.shape == (packed_rows(rows), columns) and packed.dtype == torch.uint8
    assert torch.equal(unpack_ternary(packed, rows), matrix)
    # Rows that are not there are zero bits: equal matrices are equal bytes.
    fields = torch.stack([packed >> (2 * k) & 3 for k in range(4)]).reshape(-1, columns)
    assert not fields[rows:].any()


@BUDGET
@given(codes())
def test_five_weights_a_byte(matrix):
    rows, columns = matrix.shape
    packed = pack_ternary(matrix)
    dense = pack_dense(packed, rows)
    assert dense.numel() == dense_bytes(rows, columns) == math.ceil(rows * columns / 5)
    assert torch.equal(unpack_dense(dense, rows, columns), packed)
    # As the format is described: the digits of a number in base 3, stored as a fraction of a byte.
    numbers = [math.ceil(value * 256 / 243) for value in _numbers(matrix, dense.numel())]
    assert dense.tolist() == numbers


def _numbers(matrix, count):
    digits = np.zeros(5 * count, int)
    digits[: matrix.numel()] = matrix.numpy().reshape(-1) + 1
    return (digits.reshape(5, count) * np.array([81, 27, 9, 3, 1])[:, None]).sum(axis=0).tolist()


@BUDGET
@given(codes(), st.data())
def test_a_byte_of_no_weights_is_refused_wherever_it_is(matrix, data):
    rows, columns = matrix.shape
    dense = pack_dense(pack_ternary(matrix), rows)
    used = {math.ceil(value * 256 / 243) for value in range(243)}
    free = sorted(set(range(256)) - used)
    dense[data.draw(st.integers(0, dense.numel() - 1))] = data.draw(st.sampled_from(free))
    with pytest.raises(PackedWeightError, match="code 3"):
        check_packed_weight(unpack_dense(dense, rows, columns), rows, columns)


# ---- The quantiser ----


@BUDGET
@given(weights(), GRANULARITIES, st.sampled_from([torch.float32, torch.bfloat16]))
def test_codes_are_the_nearest_and_scales_the_mean(latent, sharing, dtype):
    latent = latent.to(dtype)
    found, scale = ternarize(latent, *sharing)
    assert scale.shape == weight_scale_shape(*latent.shape, *sharing) and scale.dtype == torch.float32
    assert torch.isfinite(scale).all() and (scale >= 1e-5 * (1 - 1e-6)).all()
    wide = latent.double()
    for mean, part in _parts(wide, scale, *sharing):
        assert mean == pytest.approx(max(part.abs().mean().item(), 1e-5), rel=1e-5)
    gamma = expand_weight_scale(scale, latent.shape[1], sharing[1]).double()
    assert set(found.unique().tolist()) <= {-1.0, 0.0, 1.0}
    # No other code is nearer, but for what float32 takes for the middle between two.
    error = (wide - gamma * found.double()).abs()
    for code in (-1, 0, 1):
        assert (error <= (wide - gamma * code).abs() + 1e-5 * gamma).all()


def _parts(values, scale, granularity, group_size):
    if granularity == "tensor":
        yield scale.item(), values
        return
    for row, each in zip(values, scale, strict=True):
        groups = [row] if granularity == "row" else row.split(group_size)
        yield from zip(each.reshape(-1).tolist(), groups, strict=True)


@BUDGET
@given(weights(magnitudes=st.sampled_from([1e-3, 1.0, 50.0])), GRANULARITIES)
def test_quantising_what_was_quantised_changes_no_code(latent, sharing):
    found, scale = ternarize(latent, *sharing)
    values = effective_weight(found, scale, sharing[1])
    # The scale of what is ternary is another (zeros count in the mean), so it is given.
    again = (values / expand_weight_scale(scale, latent.shape[1], sharing[1])).round()
    assert torch.equal(again, found)
    assert torch.equal(unpack_ternary(pack_ternary(found), len(found)).float(), found)


@BUDGET
@given(weights(magnitudes=st.sampled_from([1e-2, 1.0, 30.0])), GRANULARITIES, st.data())
def test_what_is_folded_is_found_again(normalized, sharing, data):
    shape = weight_scale_shape(*normalized.shape, *sharing)
    exponents = data.draw(st.lists(st.integers(-4, 4), min_size=math.prod(shape), max_size=math.prod(shape)))
    scale = torch.tensor([10.0**exponent for exponent in exponents]).reshape(shape)
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    latent = fold_ternary(normalized, scale, *sharing, dtype=dtype)
    found, kept = ternarize(latent, *sharing)
    assert latent.dtype == dtype and torch.isfinite(latent).all()
    assert torch.equal(found, normalized.round().clamp(-1, 1))
    for (mean, wanted), (_, part) in zip(
        zip(kept.reshape(-1).tolist(), scale.reshape(-1).tolist(), strict=True),
        _parts(found, scale, *sharing),
        strict=True,
    ):
        # Where all codes are zero the scale means nothing, and is the quantiser's lowest.
        assert mean == pytest.approx(wanted if part.any() else 1e-5, rel=1e-5 if dtype == torch.float32 else 2**-8)


@BUDGET
@given(weights(magnitudes=st.sampled_from([1e-3, 1.0, 50.0])), GRANULARITIES)
def test_least_squares_are_no_worse_than_the_mean(latent, sharing):
    def error(found, scale):
        return (latent.double() - effective_weight(found, scale, sharing[1]).double()).square().sum().item()

    normalized, scale = least_squares_start(latent, *sharing)
    start = error(*ternarize(latent, *sharing))
    assert error(normalized.round().clamp(-1, 1), scale) <= start * (1 + 1e-5) + 1e-12


@BUDGET
@given(weights(), st.sampled_from([math.nan, math.inf, -math.inf]), st.data())
def test_what_is_not_finite_is_refused(latent, bad, data):
    row, column = (data.draw(st.integers(0, size - 1)) for size in latent.shape)
    latent[row, column] = bad
    for bits in (8, 4):
        with pytest.raises(ValueError, match="not finite"):
            quantize_table(latent, bits)
    with pytest.raises(ValueError, match="not finite"):
        fold_ternary(latent, torch.ones(1))


# ---- Tables of integers ----


@BUDGET
@given(weights(magnitudes=st.sampled_from([1e-42, 1e-20, 1e-2, 1.0, 1e4])), st.sampled_from([8, 4]))
def test_a_table_is_nearly_what_it_was(table, bits):
    rows, columns = table.shape
    found, scale = quantize_table(table, bits)
    shape, dtype, scale_shape, scale_dtype = table_shapes(rows, columns, bits)
    assert (tuple(found.shape), found.dtype) == (shape, dtype)
    assert (tuple(scale.shape), scale.dtype) == (scale_shape, scale_dtype)
    check_table(found, scale, columns)
    step = scale.float().abs()
    step = step[:, None].expand(-1, columns) if bits == 8 else step.repeat_interleave(32, dim=1)[:, :columns]
    error = (dequantize_table(found, scale, columns) - table).abs()
    # Half a step; in 4 bits a whole one at the end of the other sign. A scale that is 0 in its dtype stands for zeros.
    tiny = 2.0**-24 * 8 if bits == 4 else 2.0**-149 * 127
    assert (error <= step * (0.5 if bits == 8 else 1.0) * (1 + 2e-3) + tiny).all()
    zero = ~table.any(dim=1)
    assert not dequantize_table(found, scale, columns)[zero].any()


@BUDGET
@given(weights(magnitudes=st.sampled_from([1e-2, 1.0, 50.0])), st.sampled_from([8, 4]))
def test_a_table_that_was_rounded_is_rounded_to_itself(table, bits):
    values = dequantize_table(*quantize_table(table, bits), table.shape[1])
    again = dequantize_table(*quantize_table(values, bits), table.shape[1])
    torch.testing.assert_close(again, values, rtol=2e-6 if bits == 8 else 0, atol=0)
