"""The fewest scales that say the same."""

import numpy as np
import pytest
import torch

from hf_bitdistill.importing.block_scales import BlockScales, common


def scales(values, free=None, weights=64, columns=None):
    values = np.array(values, np.float32)
    free = np.zeros(values.shape, bool) if free is None else np.array(free, bool)
    return BlockScales(values, free, weights, columns or values.shape[1] * weights)


def expanded(each, granularity, size):
    """The scale of every weight, `[rows, columns]`."""
    found = each.at(granularity, size)
    if granularity == "tensor":
        return found.expand(len(each.values), each.columns)
    if granularity == "row":
        return found[:, None].expand(-1, each.columns)
    return found.repeat_interleave(size, 1)[:, : each.columns]


@pytest.mark.parametrize(
    "values, free, weights, granularity, size",
    [
        ([[2, 2], [2, 2]], None, 64, "tensor", 128),
        ([[2, 2], [3, 3]], None, 64, "row", 128),
        ([[2, 2, 3, 3]], None, 64, "group", 128),
        ([[2, 3, 3, 3]], None, 64, "group", 64),
        ([[2, 2, 3]], None, 64, "group", 128),  # the last group is short
        ([[2, 3]], None, 256, "group", 128),
        ([[2, 0], [2, 9]], [[0, 1], [0, 1]], 64, "tensor", 128),  # blocks of zeros say nothing
        ([[2, 0], [0, 0]], [[0, 1], [1, 1]], 64, "tensor", 128),
        ([[2, 0, 3, 0], [4, 4, 0, 0]], [[0, 1, 0, 1], [0, 0, 1, 1]], 64, "group", 128),
        ([[0, 0]], [[1, 1]], 64, "tensor", 128),
    ],
)
def test_exact(values, free, weights, granularity, size):
    each = scales(values, free, weights)
    assert common([each]) == (granularity, size)
    wanted = torch.from_numpy(np.repeat(each.values, weights, axis=1))
    used = torch.from_numpy(~np.repeat(each.free, weights, axis=1))
    finer = {"tensor": ["tensor", "row", "group"], "row": ["row", "group"], "group": ["group"]}[granularity]
    for option in finer:
        for group in {size, 64}:
            found = expanded(each, option, group)
            assert torch.equal(found[used], wanted[used]) and (found > 0).all()


def test_of_several_matrices():
    tensor, row, group = scales([[2, 2]]), scales([[2, 2], [3, 3]]), scales([[2, 3]])
    assert common([tensor, row]) == ("row", 128)
    assert common([tensor, row, group]) == ("group", 64)
    assert tensor.at("group", 64).tolist() == [[2, 2]] and row.at("group", 128).tolist() == [[2], [3]]
