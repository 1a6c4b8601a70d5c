"""Layers that read the same tensor round it once, and see what is written to it."""

import gc
import weakref

import pytest
import torch
from torch import nn

from hf_bitdistill import BitNetConfig
from hf_bitdistill.nn import BitLinear, shared_inputs
from hf_bitdistill.quantization import QuantizedInput, TrainingPasses, fake_quantized_linear


@pytest.fixture
def rounded(monkeypatch):
    """Shapes of what was rounded."""
    shapes = []
    of_parent = shared_inputs.NativePasses.quantized_input

    def quantized_input(self, x, dtype):
        shapes.append(tuple(x.shape))
        return of_parent(self, x, dtype)

    monkeypatch.setattr(shared_inputs.NativePasses, "quantized_input", quantized_input)
    return shapes


def make(rows):
    torch.manual_seed(rows)
    return BitLinear.from_linear(nn.Linear(48, rows), BitNetConfig()).train()


def plain(layer, x):
    """Without sharing, by torch's operators."""
    return fake_quantized_linear(x, layer.weight, layer.bias, passes=TrainingPasses())


@pytest.mark.parametrize("autocast", [False, True])
def test_one_tensor_is_rounded_once(rounded, autocast):
    layers, x = [make(rows) for rows in (8, 16, 24)], torch.randn(2, 5, 48, requires_grad=True)
    found = []
    for compute in (lambda layer: layer(x), lambda layer: plain(layer, x)):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            outputs = [compute(layer) for layer in layers]
        inputs = [x, *(layer.weight for layer in layers)]
        found.append([*outputs, *torch.autograd.grad(sum(y.float().square().sum() for y in outputs), inputs)])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))
    assert rounded == [(2, 5, 48)]


def test_what_was_written_to_is_rounded_anew(rounded):
    layer, x = make(8), torch.randn(5, 48)
    before = layer(x)
    x.mul_(-3.0)
    assert torch.equal(layer(x), plain(layer, x)) and not torch.equal(layer(x), before)
    with torch.autocast("cpu", torch.bfloat16):  # in another dtype
        assert torch.equal(layer(x), plain(layer, x))
    layer(x.clone())
    with torch.inference_mode():
        layer(torch.randn(5, 48))
    assert len(rounded) == 5


def test_nothing_is_kept_longer_than_the_tensor():
    layer, x = make(8), torch.randn(5, 48)
    layer(x)
    made: QuantizedInput = shared_inputs.LAYER_PASSES.quantized_input(x, torch.float32)
    values = weakref.ref(made.values)
    del made, x
    gc.collect()
    assert values() is None


def test_a_result_can_be_changed_in_place():
    layer, x = make(8), torch.randn(2, 5, 48, requires_grad=True)
    layer.bias = None
    expected = torch.autograd.grad((layer(x) * 2).sum(), x)[0]
    y = layer(x)
    y.mul_(2)
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], expected)
    assert layer(x[0, 0]).shape == (8,)
