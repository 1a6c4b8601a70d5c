"""The three functions of training against the one formula that they are parts of, and who chooses among them."""

import copy
import inspect

import pytest
import torch
from fake_quantized_reference import one_formula

from hf_bitdistill import BitNetConfig
from hf_bitdistill.nn import BitLinear
from hf_bitdistill.quantization import fake_quantized_linear, leaking_linear, mixed_linear


GRANULARITIES = [("tensor", None), ("row", None), ("group", 64)]
QUARTER = torch.tensor(0.25)
CASES = {
    "plain": (fake_quantized_linear, {}, {}),
    "learned scales": (fake_quantized_linear, {"scale_gradient": True}, {"scale_gradient": True}),
    "warm-up": (mixed_linear, {"share": 0.25}, {"share": 0.25}),
    "warm-up, tensor": (mixed_linear, {"share": QUARTER}, {"share": QUARTER, "leak": 0.5, "scale_gradient": True}),
    "leak": (leaking_linear, {"leak": 0.25}, {"leak": 0.25}),
    "leak, tensor": (leaking_linear, {"leak": QUARTER}, {"leak": QUARTER}),
    "leak of 0": (leaking_linear, {"leak": torch.tensor(0.0)}, {"leak": torch.tensor(0.0)}),
    "leak, learned scales": (
        leaking_linear,
        {"leak": QUARTER, "scale_gradient": True},
        {"leak": QUARTER, "scale_gradient": True},
    ),
}


def operands(dtype):
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(shape, generator=generator) for shape in ((2, 3, 130), (9, 130), (9,)))
    weight[2] = 0.0
    return [tensor.to(dtype).requires_grad_() for tensor in (x, weight, bias)], torch.randn(
        2, 3, 9, generator=generator
    )


def computed(function, dtype, autocast, with_bias):
    """The result and the gradients of `x`, weight and bias."""
    (x, weight, bias), upstream = operands(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = function(x, weight, bias if with_bias else None)
    y.backward(upstream.to(y.dtype))
    return y.detach(), x.grad, weight.grad, bias.grad


def same(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("dtype", "autocast"),
    [(torch.float32, False), (torch.float32, True), (torch.bfloat16, False), (torch.float64, True)],
)
@pytest.mark.parametrize("bits", [8, None])
@pytest.mark.parametrize(("granularity", "group_size"), GRANULARITIES)
@pytest.mark.parametrize("case", CASES)
def test_three_functions_are_the_one_formula(case, granularity, group_size, bits, dtype, autocast):
    """Bit for bit, gradients included."""
    function, options, switches = CASES[case]

    def ours(x, weight, bias):
        return function(
            x, weight, bias, granularity=granularity, group_size=group_size, activation_bits=bits, **options
        )

    def formula(x, weight, bias):
        return one_formula(x, weight, bias, granularity, group_size, bits, **switches)

    for with_bias in (True, False):
        same(computed(ours, dtype, autocast, with_bias), computed(formula, dtype, autocast, with_bias))


def test_no_function_takes_a_switch_that_it_would_ignore():
    switches = {"share", "leak", "scale_gradient"}
    taken = {
        function: switches & set(inspect.signature(function).parameters)
        for function in (fake_quantized_linear, mixed_linear, leaking_linear)
    }
    assert taken == {
        fake_quantized_linear: {"scale_gradient"},
        mixed_linear: {"share"},
        leaking_linear: {"leak", "scale_gradient"},
    }


@pytest.mark.parametrize("scale_gradient", [False, True])
@pytest.mark.parametrize("leak", [0.0, 0.25])
@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize(("granularity", "group_size"), GRANULARITIES)
def test_a_layer_computes_what_its_switches_say(granularity, group_size, share, leak, scale_gradient):
    config = BitNetConfig(weight_granularity=granularity, group_size=group_size or 64)
    layer = BitLinear(130, 9, config=config).train()
    (x, weight, bias), upstream = operands(torch.float32)
    layer.weight, layer.bias = torch.nn.Parameter(weight.detach()), torch.nn.Parameter(bias.detach())

    def of_layer(layer):
        layer.zero_grad()
        x.grad = None
        y = layer(x)
        y.backward(upstream)
        return [y.detach(), x.grad, layer.weight.grad, layer.bias.grad]

    def expected(**switches):
        def formula(x, weight, bias):
            return one_formula(x, weight, bias, granularity, group_size, 8, **switches)

        return computed(formula, torch.float32, False, True)

    # In every order, and back: what chooses is where the switches stand, not what was set last.
    layer.scale_gradient, layer.quantization_share, layer.dead_zone_leak = scale_gradient, share, leak
    switches = {"leak": leak, "scale_gradient": scale_gradient, **({} if share == 1.0 else {"share": share})}
    same(of_layer(layer), expected(**switches))
    same(of_layer(copy.deepcopy(layer)), expected(**switches))
    same(of_layer(layer.eval()), expected())
    layer.train()
    layer.quantization_share = 1.0
    same(of_layer(layer), expected(leak=leak, scale_gradient=scale_gradient))
    layer.dead_zone_leak, layer.scale_gradient = 0.0, False
    same(of_layer(layer), expected())
