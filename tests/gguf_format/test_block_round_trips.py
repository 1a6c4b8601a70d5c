"""Ternary matrices through each type of GGUF and back, on what hypothesis makes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_bitdistill.gguf_format import FORMATS, pack_blocks, unpack_blocks
from hf_bitdistill.gguf_format.i2_s_layout import LAYOUTS, pack_i2_s, size
from properties import BUDGET


# Float16 has them all: what goes in comes out. Subnormals and the largest are among them.
SCALES = st.sampled_from([2.0**-24, 2.0**-14, 0.25, 1.0, 3.0, 65504.0])


@st.composite
def matrices(draw, width):
    rows, blocks = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    share = draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))  # of zeros
    codes = generator.choice([-1, 1], (rows, blocks * width)) * (generator.random((rows, blocks * width)) >= share)
    scales = draw(st.lists(SCALES, min_size=rows * blocks, max_size=rows * blocks))
    return codes.astype(np.int8), np.array(scales, np.float32).reshape(rows, blocks)


@pytest.mark.parametrize("block", FORMATS, ids=lambda block: f"{block.name}-{block.weights}")
@BUDGET
@given(data=st.data())
def test_codes_and_scales_come_back(block, data):
    codes, scales = data.draw(matrices(block.weights))
    stored = pack_blocks(codes, scales, block)
    assert stored.shape == (len(codes), scales.shape[1] * block.bytes)
    found, kept = unpack_blocks(stored, block)
    assert np.array_equal(found, codes) and np.array_equal(kept, scales)


@pytest.mark.parametrize("block", FORMATS, ids=lambda block: f"{block.name}-{block.weights}")
@BUDGET
@given(data=st.data())
def test_what_float16_cannot_hold_is_refused(block, data):
    codes, scales = data.draw(matrices(block.weights))
    row, column = (data.draw(st.integers(0, length - 1)) for length in scales.shape)
    scales[row, column] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf, -1.0, 65536.0, 1e-9, 1e-40]))
    with pytest.raises(ValueError, match="scale"):
        pack_blocks(codes, scales, block)


@pytest.mark.parametrize("layout", LAYOUTS)
@BUDGET
@given(data=st.data())
def test_i2_s_holds_each_weight_where_the_layout_says(layout, data):
    width = LAYOUTS[layout]
    codes, scales = data.draw(matrices(width))
    scale = float(scales[0, 0])
    pieces = np.split(codes, range(1, len(codes)))
    stored = np.concatenate(list(pack_i2_s(pieces, scale, layout)))
    assert len(stored) == size(codes.size)
    assert stored[codes.size // 4 :][:4].view("<f4") == np.float32(scale) and not stored[codes.size // 4 + 4 :].any()
    flat = codes.reshape(-1)
    for index in data.draw(st.lists(st.integers(0, codes.size - 1), min_size=1, max_size=20)):
        of_block, within = divmod(index, width)
        field, byte = divmod(within, width // 4)
        assert (stored[of_block * (width // 4) + byte] >> (6 - 2 * field)) & 3 == flat[index] + 1
