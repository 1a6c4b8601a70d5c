"""What hypothesis makes for the properties of the formats: matrices of codes and of weights, in a small budget that is the same every time."""

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st


# Few examples, the same in every run, and no limit on the time of one: the machine may be busy.
BUDGET = settings(max_examples=50, deadline=None, derandomize=True, database=None)

GRANULARITIES = st.sampled_from([("tensor", None), ("row", None), ("group", 64), ("group", 128)])


@st.composite
def codes(draw):
    """Ternary codes, int8 `[R, C]`: any share of each, constant ones too."""
    shape = draw(st.integers(1, 24)), draw(st.integers(1, 70))
    weights = np.array(draw(st.lists(st.integers(0, 3), min_size=3, max_size=3).filter(any)), float)
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return torch.from_numpy(generator.choice(np.array([-1, 0, 1], np.int8), shape, p=weights / weights.sum()))


# Subnormals, around the quantiser's clamp, usual weights, and what is near the end of bfloat16.
MAGNITUDES = st.sampled_from([1e-42, 1e-20, 1e-5, 1e-2, 1.0, 1e4, 1e30])


@st.composite
def weights(draw, magnitudes=MAGNITUDES):
    """Latent weights, float32 `[R, C]`, each row of a magnitude of its own; some rows are zero."""
    shape = draw(st.integers(1, 12)), draw(st.integers(1, 300))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sizes = draw(st.lists(st.one_of(st.just(0.0), magnitudes), min_size=shape[0], max_size=shape[0]))
    values = generator.standard_normal(shape) * np.array(sizes)[:, None]
    return torch.from_numpy(values.astype(np.float32))
