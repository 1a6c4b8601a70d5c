"""Files with five ternary weights in a byte: what the native library unpacks is what plain torch unpacks, damage included."""

import pytest
import torch

from hf_bitdistill import ops
from hf_bitdistill.ops import binding
from hf_bitdistill.ops.dense_storage import pack_stored, unpack_stored
from hf_bitdistill.quantization import PackedWeightError, dense_bytes, pack_dense, pack_ternary, unpack_dense


SHAPES = [(1, 1), (1, 4), (2, 3), (3, 5), (7, 9), (64, 33), (513, 771), (5, 70000)]


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_native_equals_torch(rows, columns):
    # Any bytes: some stand for no weights.
    generator = torch.Generator().manual_seed(rows)
    dense = torch.randint(0, 256, (dense_bytes(rows, columns),), dtype=torch.uint8, generator=generator)
    expected = unpack_dense(dense, rows, columns)
    try:
        for threads in (1, 3):
            ops.set_num_threads(threads)
            assert torch.equal(unpack_stored(dense, rows, columns), expected)
            assert torch.equal(unpack_stored(torch.cat([dense[:1], dense])[1:], rows, columns), expected)
    finally:
        ops.set_num_threads(None)


@pytest.mark.parametrize("native_library", [True, False])
def test_without_the_library_and_refusals(native_library, monkeypatch):
    if not native_library:
        monkeypatch.setattr(binding, "load", lambda: (None, "none here"))
    packed = pack_ternary(torch.randint(-1, 2, (9, 11), generator=torch.Generator().manual_seed(1)))
    dense = pack_dense(packed, 9)
    assert torch.equal(unpack_stored(dense, 9, 11), packed)
    for wrong in (dense[1:], dense.to(torch.int8)):
        with pytest.raises(PackedWeightError, match="9 x 11 ternary weights"):
            unpack_stored(wrong, 9, 11)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_native_packs_what_torch_packs(rows, columns):
    packed = pack_ternary(torch.randint(-1, 2, (rows, columns), generator=torch.Generator().manual_seed(rows)))
    expected = pack_dense(packed, rows)
    try:
        for threads in (1, 3):
            ops.set_num_threads(threads)
            assert torch.equal(pack_stored(packed, rows), expected)
            assert torch.equal(pack_stored(packed.T.contiguous().T, rows), expected)
    finally:
        ops.set_num_threads(None)
    for row in {0, rows - 1}:  # (code 3 in its first weight)
        damaged = packed.clone()
        damaged[row % len(packed), 0] |= 3 << 2 * (row // len(packed))
        for pack in (pack_dense, pack_stored):
            with pytest.raises(PackedWeightError, match="invalid code 3"):
                pack(damaged, rows)


def test_packing_refuses_what_is_no_packed_weight():
    packed = pack_ternary(torch.ones(9, 11))
    for wrong in (packed[1:], packed.to(torch.int8)):
        with pytest.raises(PackedWeightError, match="9 x 11 ternary weights"):
            pack_stored(wrong, 9)
