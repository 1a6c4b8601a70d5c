"""I2_S, one weight at a time as the layout says."""

import numpy as np
import pytest

from hf_bitdistill.gguf_format.i2_s_layout import pack_i2_s, size


@pytest.mark.parametrize(("layout", "width"), [("x86", 32), ("arm", 16)])
def test_every_weight_is_where_the_layout_says(layout, width):
    codes = np.random.default_rng(0).integers(-1, 2, (6, 256)).astype(np.int8)
    data = np.concatenate(list(pack_i2_s([codes[:4], codes[4:]], 0.1, layout)))
    assert data.dtype == np.uint8 and len(data) == size(codes.size) == codes.size // 4 + 32
    for index, code in enumerate(codes.reshape(-1)):
        block, within = divmod(index, 4 * width)
        part, byte = divmod(within, width)
        assert data[block * width + byte] >> (6 - 2 * part) & 3 == code + 1, index
    assert data[-32:-28].view("<f4")[0] == np.float32(0.1) and not data[-28:].any()


def test_by_hand():
    """128 weights: 1, then 0 everywhere, -1 at 33 and 1 at 127."""
    codes = np.zeros((1, 128), np.int8)
    codes[0, [0, 33, 127]] = 1, -1, 1
    packed, tail = pack_i2_s([codes], 2.0)
    assert packed[0] == 0b10_01_01_01 and packed[1] == 0b01_00_01_01 and packed[31] == 0b01_01_01_10
    assert (packed[2:31] == 0b01_01_01_01).all()
    assert tail.tobytes() == b"\x00\x00\x00\x40" + bytes(28)


def test_what_cannot_be_packed_is_refused():
    with pytest.raises(ValueError, match="rows of 192 weights, no multiple of 128"):
        list(pack_i2_s([np.zeros((2, 192), np.int8)], 1.0))
    with pytest.raises(ValueError, match="none of -1, 0, 1"):
        list(pack_i2_s([np.full((1, 128), 2, np.int8)], 1.0))
    with pytest.raises(ValueError, match="not finite"):
        list(pack_i2_s([np.zeros((1, 128), np.int8)], np.nan))
