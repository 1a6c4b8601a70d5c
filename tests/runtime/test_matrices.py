"""Embedding tables of fewer bits, and reading files in pieces."""

import pytest
import torch
from safetensors.torch import save_file

from hf_bitdistill.files.tensor_headers import CheckpointError, TensorHeader
from hf_bitdistill.ops import binding, packed_embedding, packed_linear
from hf_bitdistill.ops import c_header as c
from hf_bitdistill.quantization import quantize_table
from hf_bitdistill.runtime import matrices
from hf_bitdistill.runtime import tensor_files as files_module
from hf_bitdistill.runtime.matrices import StoredForm, load_table
from hf_bitdistill.runtime.tensor_files import TensorFiles


@pytest.fixture
def table(tmp_path):
    def make(values):
        file = tmp_path / "table.safetensors"
        save_file({"other": torch.zeros(3), "table": values}, file)
        return TensorFiles({"table": TensorHeader(str(file), "table", "F32", tuple(values.shape))})

    return make


def rows(loaded):
    if loaded.data.dtype != torch.uint8:
        return loaded.data.float()
    return packed_embedding(torch.arange(loaded.rows), loaded.data, loaded.columns)


@pytest.mark.parametrize("shape", [(70, 48), (7, 45), (1, 1), (33, 64)])
def test_error_is_half_a_step(table, shape, monkeypatch):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values[shape[0] // 2] = 0  # a row without a scale
    files = table(values)
    monkeypatch.setattr(files_module, "_BYTES_BEFORE_REOPENING", 64)
    monkeypatch.setattr(
        TensorFiles,
        "rows",
        lambda self, name, count=5, multiple=1, rows=TensorFiles.rows: rows(self, name, count, multiple),
    )
    assert torch.equal(rows(load_table(files, "table", 32)), values)
    eight = rows(load_table(files, "table", 8))
    assert ((eight - values).abs() <= values.abs().amax(1, keepdim=True) / 127 * 0.51).all()
    four = rows(load_table(files, "table", 4))
    for start in range(0, shape[1], 32):
        group = values[:, start : start + 32]
        error = (four[:, start : start + 32] - group).abs()
        assert (error <= group.abs().amax(1, keepdim=True) / 8 * 1.01).all()  # 7 is the end on one side
        assert error.mean() <= group.abs().amax() / 8 * 0.5


def test_the_16_bit_dtype_that_loses_least(table):
    values = torch.randn(40, 32, generator=torch.Generator().manual_seed(0))
    assert load_table(table(values), "table", 16).data.dtype == torch.float16
    assert load_table(table(values.bfloat16().float()), "table", 16).data.dtype in (torch.bfloat16, torch.float16)
    came_from_bfloat16 = torch.full((4, 8), 2.0**-30)
    assert load_table(table(came_from_bfloat16), "table", 16).data.dtype == torch.bfloat16
    assert load_table(table(values * 1e6), "table", 16).data.dtype == torch.bfloat16
    assert load_table(table(values.half()), "table", 16).data.dtype == torch.float16
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert load_table(table(values.to(dtype)), "table", None).data.dtype == dtype
    kept = load_table(table(values.bfloat16()), "table", 16).data
    assert torch.equal(kept, values.bfloat16())


@pytest.mark.parametrize("bits", [32, 16, 8, 4])
def test_values_that_are_not_finite(table, bits):
    values = torch.randn(40, 32)
    values[17, 3] = torch.inf
    with pytest.raises(ValueError, match=r"table.safetensors: tensor 'table': a value is not finite"):
        load_table(table(values), "table", bits)


@pytest.fixture
def small_heads_are_split_too(monkeypatch):
    if binding.load()[0] is None:
        pytest.skip("needs the native library")
    monkeypatch.setattr(matrices, "SPLIT_FROM", 0)
    monkeypatch.setattr(matrices, "SAMPLED_ROWS", 20)


@pytest.fixture
def stored_table(tmp_path):
    def make(codes, scale):
        file = tmp_path / "table.safetensors"
        save_file({"table": codes, "table_scale": scale}, file)
        return TensorFiles(
            {
                "table": TensorHeader(str(file), "table", "I8", tuple(codes.shape)),
                "table_scale": TensorHeader(str(file), "table_scale", "F32", tuple(scale.shape)),
            }
        )

    return make


def in_pieces_of_16_rows(monkeypatch):
    original = TensorFiles.rows
    monkeypatch.setattr(
        TensorFiles, "rows", lambda self, name, count=16, multiple=1: original(self, name, count, multiple)
    )


def outputs(table, x):
    """Of a table in two parts, all that it gives."""
    out = torch.empty(len(x), table.rows)
    arguments = (
        table.data.data_ptr(),
        table.data.numel(),
        x.data_ptr(),
        x.numel(),
        len(x),
        0,
        out.data_ptr(),
        out.numel(),
    )
    binding.load()[0].call("split_linear", *arguments)
    return out


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("shape", [(130, 200), (70, 33), (16, 128)])
def test_a_head_of_8_bits_in_two_parts(table, stored_table, small_heads_are_split_too, monkeypatch, stored, shape):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    norm, x = torch.rand(shape[1]) + 0.5, torch.randn(3, shape[1])
    in_pieces_of_16_rows(monkeypatch)
    form = StoredForm(shape[1], torch.float32) if stored else None
    files = stored_table(*quantize_table(values, 8)) if stored else table(values)
    whole, split = load_table(files, "table", 8, form), load_table(files, "table", 8, form, norm)
    assert (whole.kind, split.kind) == (c.TABLE_PACKED, c.TABLE_SPLIT)
    assert torch.equal(outputs(split, x), packed_linear(x, whole.data, shape[0]))


def test_other_heads_stay_in_one_part(table, stored_table, small_heads_are_split_too):
    values, norm = torch.randn(40, 64), torch.ones(64)
    for bits in (32, 16, 4):
        assert load_table(table(values), "table", bits, None, norm).kind != c.TABLE_SPLIT
    rounded = stored_table(*quantize_table(values, 8))
    assert load_table(rounded, "table", 4, StoredForm(64, torch.float32), norm).kind == c.TABLE_PACKED


def test_a_damaged_head_is_named(table, stored_table, small_heads_are_split_too):
    values, norm = torch.randn(60, 64), torch.ones(64)
    codes, scale = quantize_table(values, 8)
    scale[17] *= -1  # not in the sample
    with pytest.raises(CheckpointError, match=r"table.safetensors: tensor 'table_scale' is negative"):
        load_table(stored_table(codes, scale), "table", None, StoredForm(64, torch.float32), norm)
    values[17, 3] = torch.inf
    with pytest.raises(ValueError, match=r"table.safetensors: tensor 'table': a value is not finite"):
        load_table(table(values), "table", 8, None, norm)
