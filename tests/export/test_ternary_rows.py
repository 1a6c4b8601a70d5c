"""Rows of a ternary matrix in each type that llama.cpp has for them, read back as the importer reads them, on what hypothesis makes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_bitdistill.export.gguf_encoding import F16, F32, Q4_0, encode_ternary
from hf_bitdistill.gguf_format import Q2_0, Q2_0_128, TQ1_0, TQ2_0, unpack_blocks
from hf_bitdistill.importing.gguf_decoding import as_floats
from properties import BUDGET


# With a type: columns that one scale may be of.
KINDS = {
    "TQ1_0": (TQ1_0, [None]),
    "TQ2_0": (TQ2_0, [None]),
    "Q2_0": (Q2_0, [None, 64, 128]),
    "Q2_0_128": (Q2_0_128, [None, 128]),
    "Q4_0": (Q4_0, [None, 64, 128]),
    "F16": (F16, [None, 64]),
    "F32": (F32, [None, 64]),
}


@pytest.mark.parametrize("name", KINDS)
@BUDGET
@given(data=st.data())
def test_the_values_are_codes_times_scales(name, data):
    kind, widths = KINDS[name]
    width, rows = data.draw(st.sampled_from(widths)), data.draw(st.integers(1, 4))
    columns = data.draw(st.integers(1, 3)) * 256
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    codes = generator.integers(-1, 2, (rows, columns)).astype(np.int8)
    groups = columns // (width or columns)
    scales = data.draw(
        st.lists(st.sampled_from([2.0**-10, 0.75, 3.0]), min_size=rows * groups, max_size=rows * groups)
    )
    scales = np.array(scales, np.float32).reshape(rows, groups)
    stored = encode_ternary(codes, scales, width, kind).reshape(rows, -1)
    assert stored.shape[1] == columns // kind.weights * kind.bytes
    wanted = codes * np.repeat(scales, width or columns, axis=1)
    if kind in (Q2_0, Q2_0_128):
        found, kept = unpack_blocks(stored, kind)
        values = found * np.repeat(kept, kind.weights, axis=1)
    else:
        values = as_floats(stored, kind)
    assert np.array_equal(values, wanted)
