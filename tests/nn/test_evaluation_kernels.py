"""Online layers in the native kernels while a model is evaluated: the bits of the forward that rounds anew at every call."""

import copy
import pickle

import pytest
import torch
from torch import nn

from hf_bitdistill import BitNetConfig, ops
from hf_bitdistill.nn import BitLinear, full_precision, kernels_while_evaluating
from hf_bitdistill.nn import evaluation_kernels as kernels


OPTIONS = [{}, {"weight_granularity": "row"}, {"weight_granularity": "group", "group_size": 64}]


def make(rows=11, columns=130, sub_norm=True, **options):
    torch.manual_seed(0)
    layer = BitLinear.from_linear(nn.Linear(columns, rows), BitNetConfig(**options), sub_norm).eval()
    if sub_norm:
        nn.init.uniform_(layer.rms_norm.weight, 0.5, 1.5)
    return layer


@pytest.fixture
def packings(monkeypatch):
    """How often a weight was packed, one entry each."""
    made = []

    def pack(*args):
        made.append(args[2])
        return ops.ternary_pack(*args)

    monkeypatch.setattr(kernels, "ternary_pack", pack)
    return made


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("sub_norm", [True, False])
@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_the_same_bits(options, sub_norm, autocast, dtype, packings):
    layer = make(sub_norm=sub_norm, **options)
    if dtype == torch.bfloat16 and not autocast:
        layer = layer.to(dtype)
    x = (3 * torch.randn(2, 5, 130)).to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected = layer(x)
        normed = layer.normed(x)
        with kernels_while_evaluating(layer):
            assert not packings
            actual, again, of_normed = layer(x), layer(x), layer(normed, normed=True)
    assert packings == [11]  # once for all three
    assert actual.dtype == expected.dtype
    for found in (actual, again, of_normed):
        assert torch.equal(found, expected)


@torch.no_grad()
def test_a_weight_that_changes(packings):
    layer, x = make(), torch.randn(3, 130)
    with kernels_while_evaluating(layer):
        layer(x)
        for change in (
            lambda: layer.weight.mul_(-2.0),
            lambda: setattr(layer, "weight", nn.Parameter(layer.weight.flip(0))),
        ):
            change()
            found = layer(x)
            with torch.enable_grad():
                expected = layer(x)
            torch.testing.assert_close(found, expected.detach())
    assert len(packings) == 3


@torch.no_grad()
def test_where_they_do_not_compute(packings):
    x = torch.randn(3, 130)
    layer = make()
    expected = layer(x)
    with kernels_while_evaluating(layer):
        with torch.enable_grad():
            layer(x)
        layer.train()(x)
        layer.eval()
        with full_precision(layer):
            assert torch.equal(layer(x), nn.functional.linear(layer.normed(x), layer.weight, layer.bias))
    floats = make(activation_bits=None)
    with kernels_while_evaluating(floats):
        floats(x)
    assert not packings
    assert torch.equal(layer(x), expected)


@torch.no_grad()
def test_a_compiled_layer_is_one_graph(packings):
    layer, x = make(), torch.randn(3, 130)
    with kernels_while_evaluating(layer):
        compiled = torch.compile(layer, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x), layer(x))
    assert len(packings) == 1  # of the one that is not


@torch.no_grad()
def test_what_is_no_number_stays_one(packings):
    layer, x = make(sub_norm=False), torch.randn(3, 130)
    layer.weight[2, 5] = float("nan")
    with kernels_while_evaluating(layer):
        assert layer(x).isnan().any()
    assert not packings


@torch.no_grad()
def test_nested_and_copied():
    layer, x = make(), torch.randn(3, 130)
    expected = layer(x)
    with kernels_while_evaluating(layer):
        layer(x)
        with kernels_while_evaluating(layer):
            pass
        assert layer.in_kernels is not None
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert torch.equal(other(x), expected)
    assert layer.in_kernels is None
    with pytest.raises(RuntimeError), kernels_while_evaluating(layer):
        raise RuntimeError
    assert layer.in_kernels is None


@torch.no_grad()
@pytest.mark.parametrize("dtype, other", [(torch.float16, torch.bfloat16), (torch.bfloat16, torch.float16)])
def test_two_half_types_are_rounded_once(dtype, other):
    layer = make(rows=200, sub_norm=False)
    x = (3 * torch.randn(8, 130)).to(dtype)
    with torch.autocast("cpu", other):
        expected = layer(x)
        with kernels_while_evaluating(layer):
            assert torch.equal(layer(x), expected)
