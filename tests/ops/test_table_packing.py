import pytest
import torch

from hf_bitdistill import ops
from hf_bitdistill.ops import SplitPacker, TablePacker, binding, pack_codes, pack_table
from hf_bitdistill.quantization import quantize_table


def rows(packed, shape):
    return ops.packed_embedding(torch.arange(shape[0]), packed, shape[1])


@pytest.fixture
def without_library(monkeypatch):
    monkeypatch.setattr(binding, "library", lambda: None)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 1), (16, 32), (50, 33), (37, 100), (130, 576)])
def test_library_packs_as_torch_does(bits, dtype, shape, monkeypatch):
    table = torch.randn(shape, generator=torch.Generator().manual_seed(shape[1])).to(dtype)
    table[shape[0] // 2] = 0
    table[-1, -1] = -table[-1].abs().max()
    table[-1, 0] = table[-1].abs().max()  # two values of the largest magnitude
    found = rows(pack_table(table, bits), shape)
    monkeypatch.setattr(binding, "library", lambda: None)
    assert torch.equal(found, rows(pack_table(table, bits), shape))


@pytest.mark.parametrize("bits", [8, 4])
def test_pieces(bits):
    table = torch.randn(70, 48, generator=torch.Generator().manual_seed(0))
    packer = TablePacker(70, 48, bits)
    for start, stop in ((0, 16), (16, 64), (64, 70)):
        packer.add(table[start:stop])
    assert torch.equal(packer.packed(), pack_table(table, bits))


@pytest.mark.parametrize("columns", [48, 33, 1])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("library", [True, False])
def test_pieces_of_codes(bits, columns, library, monkeypatch):
    table = torch.randn(70, columns, generator=torch.Generator().manual_seed(0))
    expected, (codes, scale) = pack_table(table, bits), quantize_table(table, bits)
    if not library:
        monkeypatch.setattr(binding, "library", lambda: None)
    packer = TablePacker(70, columns, bits)
    for rows in (slice(0, 16), slice(16, 64), slice(64, 70)):
        packer.add_codes(codes[rows], scale[rows])
    assert torch.equal(packer.packed(), expected)
    assert torch.equal(pack_codes(codes, scale, columns), expected)
    with pytest.raises(ValueError, match="no piece of this table"):
        packer.add_codes(codes[:16], scale[:16])


def test_a_table_in_two_parts():
    if ops.binding.load()[0] is None:
        pytest.skip("needs the native library")
    table, norm = torch.randn(70, 48, generator=torch.Generator().manual_seed(0)), torch.ones(48)
    sample, (codes, scale) = pack_table(table[::3], 8), quantize_table(table, 8)

    def packed(*ends, rounded=False):
        packer = SplitPacker(70, 48, sample, norm)
        for start, stop in zip((0, *ends), (*ends, 70), strict=True):
            if rounded:
                packer.add_codes(codes[start:stop], scale[start:stop])
            else:
                packer.add(table[start:stop])
        return packer.packed()

    assert torch.equal(packed(16, 64), packed())
    assert torch.equal(packed(48, rounded=True), packed())
    incomplete = SplitPacker(70, 48, sample)
    incomplete.add(table[:16])
    with pytest.raises(ValueError, match="16 of 70 rows"):
        incomplete.packed()
    with pytest.raises(ValueError, match="not finite"):
        incomplete.add(torch.full((16, 48), torch.inf))
    with pytest.raises(ops.NativeLibraryError):
        incomplete.add(table[:5])


def refusals():
    for bits in (8, 4):
        table = torch.ones(40, 32)
        table[17, 3] = torch.nan
        with pytest.raises(ValueError, match="not finite"):
            pack_table(table, bits)
        packer = TablePacker(40, 32, bits)
        with pytest.raises(ValueError, match="no piece of this table"):
            packer.add(torch.ones(5, 32))
        with pytest.raises(ValueError, match="no piece of this table"):
            packer.add(torch.ones(41, 32))
        packer.add(torch.ones(32, 32))
        with pytest.raises(ValueError, match="32 of 40 rows"):
            packer.packed()
    with pytest.raises(ValueError, match="too large"):
        pack_table(torch.full((2, 32), 1e7), 4)
    with pytest.raises(ValueError, match="8 or 4 bits"):
        pack_table(torch.ones(2, 32), 16)


def test_refusals():
    refusals()


def test_refusals_without_the_library(without_library):
    refusals()
