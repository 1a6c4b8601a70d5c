"""Ternary codes in GGUF's blocks, against what the layouts say one weight at a time."""

import numpy as np
import pytest

from hf_bitdistill.gguf_format import (
    FORMATS,
    Q2_0,
    Q2_0_128,
    TQ1_0,
    TQ2_0,
    float16_error,
    pack_blocks,
    q2_0_of,
    unpack_blocks,
)


IDS = [f"{block.name}-{block.weights}" for block in FORMATS]


def weight_at(data, index, block):
    """One weight of one block, read as the layout says."""
    raw = [int(byte) for byte in data]
    if block is TQ1_0:
        for first_weight, first_byte, width, digits in ((0, 0, 32, 5), (160, 32, 16, 5), (240, 48, 4, 4)):
            if first_weight <= index < first_weight + width * digits:
                digit, byte = divmod(index - first_weight, width)
                fraction = raw[first_byte + byte]
                for _ in range(digit):
                    fraction = fraction * 3 % 256
                code = fraction * 3 // 256 - 1
        scale = bytes(raw[52:54])
    elif block is TQ2_0:
        half, within = divmod(index, 128)
        code = (raw[32 * half + within % 32] >> 2 * (within // 32)) % 4 - 1
        scale = bytes(raw[64:66])
    else:
        code = (raw[2 + index // 4] >> 2 * (index % 4)) % 4 - 1
        scale = bytes(raw[:2])
    return code * float(np.frombuffer(scale, "<f2")[0])


@pytest.mark.parametrize("block", FORMATS, ids=IDS)
def test_every_weight_is_where_the_layout_says(block):
    generator = np.random.default_rng(0)
    codes = generator.integers(-1, 2, (3, 2 * block.weights)).astype(np.int8)
    scales = np.array([[0.5, 0.25], [1.5, 3.0], [0.75, 2.0]], np.float32)
    data = pack_blocks(codes, scales, block)
    assert data.dtype == np.uint8 and data.shape == (3, 2 * block.bytes)
    for row in range(3):
        for index in range(2 * block.weights):
            part = data[row].reshape(2, -1)[index // block.weights]
            expected = codes[row, index] * scales[row, index // block.weights]
            assert weight_at(part, index % block.weights, block) == expected, (row, index)
    back, back_scales = unpack_blocks(data, block)
    assert back.dtype == np.int8 and (back == codes).all() and (back_scales == scales).all()


@pytest.mark.parametrize("block", FORMATS, ids=IDS)
def test_blocks_of_zeros_and_scales_that_broadcast(block):
    codes = np.zeros((2, block.weights), np.int8)
    codes[1, 5] = -1
    back, scales = unpack_blocks(pack_blocks(codes, np.float32(0.1), block), block)
    assert (back == codes).all() and (scales == np.float32(np.float16(0.1))).all()


def test_the_package_reads_what_it_knows():
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

    codes = np.random.default_rng(1).integers(-1, 2, (4, 512)).astype(np.int8)
    scales = np.array([[1.0], [0.5], [2.0], [0.25]], np.float32)
    for block in (TQ1_0, TQ2_0):
        kind = GGMLQuantizationType[block.name]
        assert int(kind) == block.number and GGML_QUANT_SIZES[kind] == (block.weights, block.bytes)
        assert (quants.dequantize(pack_blocks(codes, scales, block), kind) == codes * scales).all()


@pytest.mark.parametrize("block", FORMATS, ids=IDS)
def test_what_cannot_be_packed_is_refused(block):
    codes = np.ones((1, block.weights), np.int8)
    with pytest.raises(ValueError, match=f"rows of {block.weights + 32} weights.*no multiple of {block.weights}"):
        pack_blocks(np.ones((1, block.weights + 32), np.int8), np.float32(1), block)
    with pytest.raises(ValueError, match="none of -1, 0, 1"):
        pack_blocks(2 * codes, np.float32(1), block)
    for scale in (np.inf, np.nan, 1e6, -1.0):
        with pytest.raises(ValueError, match="float16 cannot hold"):
            pack_blocks(codes, np.float32(scale), block)
    with pytest.raises(ValueError, match="0 in float16"):
        pack_blocks(codes, np.float32(1e-9), block)


@pytest.mark.parametrize("block", FORMATS, ids=IDS)
def test_what_is_no_ternary_tensor_is_refused(block):
    data = pack_blocks(np.ones((1, block.weights), np.int8), np.float32(1), block)
    with pytest.raises(ValueError, match=f"no multiple of the {block.bytes} bytes"):
        unpack_blocks(data[:, :-1], block)
    broken = data.copy()
    broken[0, slice(2) if block.scale_first else slice(-2, None)] = np.array([np.inf], "<f2").view(np.uint8)
    with pytest.raises(ValueError, match="not finite"):
        unpack_blocks(broken, block)
    if block is not TQ1_0:  # in which every byte is five ternary digits
        broken = data.copy()
        broken[0, 10] |= 0b11000000
        with pytest.raises(ValueError, match="fourth level"):
            unpack_blocks(broken, block)


def test_the_two_formats_of_one_number():
    assert Q2_0.number == Q2_0_128.number == 42
    assert q2_0_of(256 // 64 * 18, 256) is Q2_0
    assert q2_0_of(256 // 128 * 34, 256) is Q2_0_128
    assert q2_0_of(18, 64) is Q2_0
    with pytest.raises(ValueError, match="neither of 64 nor of 128"):
        q2_0_of(70, 256)


def test_float16_error():
    assert float16_error(np.array([1.0, 0.5, 0.25])) == 0
    assert float16_error(np.array([1.0, 1 + 2**-11])) == pytest.approx(2**-11, rel=1e-3)
    assert float16_error(np.linspace(1e-3, 10, 1000)) <= 2**-11
