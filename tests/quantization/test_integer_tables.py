import math

import pytest
import torch

from hf_bitdistill.quantization import quantize_int4_groups, quantize_int8_rows


def dense_int4(codes, scale, columns):
    """Values of an int4 table, element by element."""
    rows = codes.shape[0]
    return torch.tensor(
        [
            [((int(codes[r, c // 2]) >> 4 * (c % 2)) % 16 - 8) * float(scale[r, c // 32]) for c in range(columns)]
            for r in range(rows)
        ]
    )


def test_int8_is_within_half_a_step_of_a_row():
    table = torch.randn(40, 33, generator=torch.Generator().manual_seed(0)) * torch.logspace(-20, 3, 40)[:, None]
    codes, scale = quantize_int8_rows(table)
    assert codes.dtype == torch.int8 and scale.dtype == torch.float32
    assert torch.equal(codes.abs().amax(1), torch.full((40,), 127, dtype=torch.int8))
    assert ((codes * scale[:, None] - table).abs() <= 0.5001 * scale[:, None]).all()


@pytest.mark.parametrize("columns", [1, 31, 32, 33, 70, 96])
def test_int4_is_within_a_step_of_a_group(columns):
    table = torch.randn(9, columns, generator=torch.Generator().manual_seed(columns))
    codes, scale = quantize_int4_groups(table)
    assert codes.shape == (9, math.ceil(columns / 2)) and scale.shape == (9, math.ceil(columns / 32))
    steps = scale.float().repeat_interleave(32, dim=1)[:, :columns]
    error = (dense_int4(codes, scale, columns) - table).abs()
    # Half a step, but for values beyond 7.5 steps on the side that ends at 7.
    limit = torch.where(table / steps > 7.5, 1.0, 0.5)
    assert (error <= limit * steps.abs() + 4e-3 * table.abs()).all()


def test_rows_of_zeros_and_half_precision_tables():
    table = torch.randn(5, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    table[2] = 0
    table[3, :32] = 1e-9
    codes, scale = quantize_int8_rows(table)
    assert (codes[2] == 0).all() and scale[2] == 0
    assert torch.equal(codes, quantize_int8_rows(table.float())[0])
    codes, scale = quantize_int4_groups(table)
    assert (dense_int4(codes, scale, 64)[2] == 0).all() and (dense_int4(codes, scale, 64)[3, :32] == 0).all()


def test_parts_of_a_large_table_are_joined(monkeypatch):
    table = torch.randn(23, 40, generator=torch.Generator().manual_seed(2))
    whole = (*quantize_int8_rows(table), *quantize_int4_groups(table))
    monkeypatch.setattr("hf_bitdistill.quantization.integer_tables._ROWS", 5)
    assert all(map(torch.equal, whole, (*quantize_int8_rows(table), *quantize_int4_groups(table))))


@pytest.mark.parametrize("quantize", [quantize_int8_rows, quantize_int4_groups])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_refused(quantize, value):
    table = torch.ones(4, 40)
    table[3, 39] = value
    with pytest.raises(ValueError, match="not finite"):
        quantize(table)
    if quantize is quantize_int4_groups:
        with pytest.raises(ValueError, match="too large"):
            quantize(torch.full((1, 32), 1e7))
