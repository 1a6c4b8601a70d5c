import copy
import pickle

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_bitdistill import BitNetConfig
from hf_bitdistill.nn import BitLinear, SubLN, TernaryLinear, full_precision, set_quantization_share
from hf_bitdistill.nn.base import TernaryLayer
from hf_bitdistill.quantization import unpack_ternary


def make(rows=10, columns=130, sub_norm=True, **options):
    torch.manual_seed(0)
    layer = BitLinear.from_linear(nn.Linear(columns, rows), BitNetConfig(**options), sub_norm)
    if sub_norm:
        nn.init.uniform_(layer.rms_norm.weight, 0.5, 1.5)
    return layer


OPTIONS = [
    {},
    {"weight_granularity": "row"},
    {"weight_granularity": "group", "group_size": 64},
    {"activation_bits": None},
]


def test_sub_norm_is_an_rms_norm_in_float32():
    norm = SubLN(6, eps=1e-3)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    x = torch.randn(4, 6)
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt() * norm.weight
    torch.testing.assert_close(norm(x), expected)
    assert norm.to(torch.bfloat16)(x.to(torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(6,), (4, 6), (2, 3, 6)])
def test_gradient_of_sub_norm(shape, dtype):
    torch.manual_seed(0)
    norm = SubLN(6, eps=1e-3).to(dtype)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    grad = torch.randn(shape, dtype=dtype)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        y = norm(x)
    y.backward(grad)
    # The input itself, the weight, and one number a token.
    assert [tensor.shape for tensor in kept] == [x.shape, norm.weight.shape, (*shape[:-1], 1)]
    assert kept[0].data_ptr() == x.data_ptr()
    wide, weight = (tensor.detach().double().requires_grad_() for tensor in (x, norm.weight))
    expected = wide / (wide.square().mean(-1, keepdim=True) + 1e-3).sqrt() * weight
    expected.backward(grad.double())
    precision = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 2**-7, "atol": 2**-7}
    for actual, wanted in ((y, expected), (x.grad, wide.grad), (norm.weight.grad, weight.grad)):
        assert actual.dtype == dtype
        torch.testing.assert_close(actual.double(), wanted, **precision)


@pytest.mark.parametrize("options", OPTIONS)
def test_training_evaluation_and_packed_forward_agree(options):
    layer, x = make(**options), torch.randn(3, 7, 130)
    trained = layer.train()(x)
    with torch.no_grad():
        evaluated = layer.eval()(x)
        packed = TernaryLinear.from_bit_linear(layer, BitNetConfig(**options))(x)
    assert torch.equal(packed, evaluated)
    torch.testing.assert_close(trained, evaluated, rtol=1e-5, atol=1e-5)


def test_conv1d_is_transposed():
    conv = Conv1D(12, 8)
    layer, x = BitLinear.from_linear(conv, BitNetConfig()), torch.randn(2, 8)
    with full_precision(layer):
        torch.testing.assert_close(layer(x), conv(x))


def test_share_goes_from_full_precision_to_ternary():
    layer, x = make(sub_norm=False).train(), torch.randn(5, 130)
    with full_precision(layer):
        full = layer(x)
    ternary = layer(x)
    outputs = {}
    for share in (0.0, 0.5, 1.0):
        set_quantization_share(layer, share)
        outputs[share] = layer(x)
        with torch.no_grad():
            assert torch.equal(layer.eval()(x), ternary)  # evaluation is ternary whatever the share
        layer.train()
    torch.testing.assert_close(outputs[0.0], full)
    assert torch.equal(outputs[1.0], ternary)
    assert not torch.allclose(outputs[0.5], full) and not torch.allclose(outputs[0.5], ternary)
    with pytest.raises(ValueError, match="between 0 and 1"):
        set_quantization_share(layer, 1.5)


def test_full_precision_is_undone_after_an_error():
    layer = make()
    with pytest.raises(RuntimeError), full_precision(layer):
        raise RuntimeError
    assert layer.quantize


def test_bits_on_disk():
    layer = make(rows=10)
    packed = TernaryLinear.from_bit_linear(layer, BitNetConfig())
    state = packed.state_dict()
    assert {name: (tuple(value.shape), value.dtype) for name, value in state.items()} == {
        "weight": ((3, 130), torch.uint8),
        "weight_scale": ((1,), torch.float32),
        "bias": ((10,), torch.float32),
        "rms_norm.weight": ((130,), torch.float32),
    }
    assert torch.equal(unpack_ternary(state["weight"], 10).float(), layer.ternarize()[0])


def test_layers_can_be_copied_pickled_and_compiled():
    layer, x = make().eval(), torch.randn(2, 130)
    packed = TernaryLinear.from_bit_linear(layer, BitNetConfig())
    with torch.no_grad():
        expected = layer(x)
        for module in (layer, packed):
            assert torch.equal(copy.deepcopy(module)(x), expected)
            assert torch.equal(pickle.loads(pickle.dumps(module))(x), expected)
            compiled = torch.compile(module, backend="eager", fullgraph=True)
            assert torch.equal(compiled(x), expected)


def test_half_precision_layers_keep_their_dtype():
    layer = make().to(torch.bfloat16)
    x = torch.randn(2, 130, dtype=torch.bfloat16)
    assert layer.train()(x).dtype == torch.bfloat16
    layer(x).float().square().mean().backward()
    assert layer.weight.grad.dtype == torch.bfloat16 and torch.isfinite(layer.weight.grad).all()
    with torch.no_grad():
        assert layer.eval()(x).dtype == torch.bfloat16
    assert TernaryLinear.from_bit_linear(layer, BitNetConfig())(x).dtype == torch.bfloat16


def test_evaluation_follows_autocast_like_a_linear_layer():
    layer, x = make(sub_norm=False), torch.randn(2, 130)
    plain = nn.Linear(130, 10)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        assert layer.eval()(x).dtype == layer.train()(x).dtype == plain(x).dtype == torch.bfloat16


def packed_pair() -> tuple[TernaryLinear, TernaryLinear]:
    """Two packed layers of one shape and other weights; the first one has computed."""
    torch.manual_seed(1)
    layers = [BitLinear.from_linear(nn.Linear(130, 10), BitNetConfig(), True) for _ in range(2)]
    first, second = (TernaryLinear.from_bit_linear(layer, BitNetConfig()) for layer in layers)
    first.bias.data.copy_(second.bias)
    with torch.no_grad():
        assert not torch.equal(first(X), second(X))
    return first, second


X = torch.randn(3, 130, generator=torch.Generator().manual_seed(2))


def copy_in_place(layer, other):
    layer.weight.copy_(other.weight)
    layer.weight_scale.copy_(other.weight_scale)


def replace(layer, other):
    layer.weight, layer.weight_scale = other.weight.clone(), other.weight_scale.clone()


def set_storage(layer, other):
    layer.weight.set_(other.weight.clone())
    layer.weight_scale.set_(other.weight_scale.clone())


def load_distributed(layer, other):
    import tempfile

    import torch.distributed.checkpoint as dcp

    with tempfile.TemporaryDirectory() as folder:
        dcp.save(other.state_dict(), checkpoint_id=folder)
        state = layer.state_dict()
        dcp.load(state, checkpoint_id=folder)


@pytest.mark.parametrize("load", [copy_in_place, replace, set_storage, load_distributed])
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_weights_that_are_written_to_in_place_are_the_ones_that_compute(load, context):
    layer, other = packed_pair()
    with context():
        load(layer, other)
        expected = other(X)
        assert torch.equal(layer(X), expected)
        kept = layer.kernel_weight()
        assert torch.equal(layer(X), expected) and layer.kernel_weight() is kept


def test_a_scale_alone_is_written_to():
    layer, _ = packed_pair()
    layer.bias = None
    before = layer(X)
    layer.weight_scale.mul_(2)
    assert torch.equal(layer(X), 2 * before)


def test_a_packed_layer_made_in_inference_mode():
    _, source = packed_pair()
    with torch.inference_mode():
        layer = TernaryLinear(130, 10, True, BitNetConfig(), True)
        layer.load_state_dict(source.state_dict())
        assert layer.weight.is_inference()
        assert torch.equal(layer(X), source(X))
        # A load is seen where versions are not.
        copy_in_place(source, packed_pair()[0])
        layer.load_state_dict(source.state_dict())
        assert torch.equal(layer(X), source(X))
    with torch.no_grad():
        assert torch.equal(layer(X), source(X))


@pytest.mark.parametrize("eager_first", [True, False])
def test_a_compiled_packed_layer_after_a_write(eager_first):
    torch.compiler.reset()
    layer, other = packed_pair()
    if not eager_first:
        layer = copy.deepcopy(layer)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(compiled(X), layer(X))
        copy_in_place(layer, other)
        layer(X)  # outside, once
        assert torch.equal(compiled(X), other(X))
    torch.compiler.reset()


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("sub_norm", [False, True])
def test_both_layers_take_their_options_from_one_place(options, sub_norm):
    config = BitNetConfig(**options)
    online, packed = (kind(130, 10, True, config, sub_norm) for kind in (BitLinear, TernaryLinear))
    assert isinstance(online, TernaryLayer) and isinstance(packed, TernaryLayer)
    for layer in (online, packed):
        assert (layer.weight_granularity, layer.group_size) == (config.weight_granularity, config.scale_group_size)
        assert layer.activation_bits == config.activation_bits
        assert (layer.rms_norm is not None) is sub_norm
    assert online.extra_repr() == packed.extra_repr()
    assert "in_features=130, out_features=10, bias=True, granularity=" in packed.extra_repr()
    assert set(online.state_dict()) == set(packed.state_dict()) - {"weight_scale"}
