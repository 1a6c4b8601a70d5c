"""What a training computes by the native library against torch's operators: the same bits on every instruction set."""

import pytest
import torch

from hf_bitdistill.ops import NativePasses, binding, normalize, normalize_backward, training_passes
from hf_bitdistill.quantization import TrainingPasses, quantize_activations, ternarize


LIBRARY = binding.load()[0]
pytestmark = pytest.mark.skipif(LIBRARY is None, reason="no native library")
DTYPES = [torch.float32, torch.bfloat16]
# Widths that fill vectors, and that do not; rows for one thread and for several.
SHAPES = [(1, 1), (3, 17), (5, 64), (70, 576), (3, 20000)]


@pytest.fixture(params=[] if LIBRARY is None else LIBRARY.supported_isas)
def isa(request):
    before = LIBRARY.isa
    LIBRARY.set_isa(request.param)
    yield request.param
    LIBRARY.set_isa(before)


@pytest.fixture
def counted(monkeypatch):
    """Names of the calls of the library."""
    calls = []
    call = LIBRARY.call
    monkeypatch.setattr(LIBRARY, "call", lambda name, *args: (calls.append(name), call(name, *args)))
    return calls


def numbers(shape, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator) * torch.rand(shape[0], 1, generator=generator).mul(8).exp()
    values[0] = 0.0
    values[-1, 0] = 1e-7  # below the clamps
    return values.to(dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("out", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bits_are_torchs(isa, counted, dtype, out, shape):
    x = numbers(shape, dtype)
    values, scale = NativePasses().quantized_input(x, out)
    wanted = TrainingPasses().quantized_input(x, out)
    assert torch.equal(values, wanted.values) and torch.equal(scale, wanted.token_scale)
    x_q, s = quantize_activations(x)
    assert torch.equal(values.float(), x_q) and torch.equal(scale, s)

    codes, weight_scale = ternarize(x)
    assert torch.equal(NativePasses().codes(x, weight_scale, out), codes.to(out))
    assert torch.equal(TrainingPasses().codes(x, weight_scale, out), codes.to(out))

    for factor in (None, weight_scale):
        room = x.new_empty(shape, dtype=out)
        product = (x.float() if factor is None else x.float() * factor) * scale
        assert torch.equal(NativePasses().scaled(x, room, factor, scale), product.to(out))
        assert torch.equal(TrainingPasses().scaled(x, room.zero_(), factor, scale), product.to(out))
    if dtype == out:
        assert NativePasses().scaled(x, x, None, scale) is x and torch.equal(x, product_of(shape, dtype, scale))
    assert counted.count("train_quantize") == 1 and counted.count("train_ternarize") == 1


def product_of(shape, dtype, scale):
    return (numbers(shape, dtype).float() * scale).to(dtype)


def test_halves_of_boundaries(isa):
    """Rounding is half to even, in integers and in bfloat16."""
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 63.5, 64.5]])
    assert NativePasses().quantized_input(x, torch.float32).values[0].tolist() == [127, 0, 2, 2, 0, -2, -2, 64, 64]
    codes = NativePasses().codes(x, torch.ones(1), torch.bfloat16)
    assert codes[0].tolist() == [1, 0, 1, 1, 0, -1, -1, 1, 1]
    wide = torch.tensor([[1 + 2**-8, 1 + 3 * 2**-8, float("nan"), float("inf"), -float("inf"), 3.4e38, 1e-45, -0.0]])
    room = wide.new_empty(wide.shape, dtype=torch.bfloat16)
    found = NativePasses().scaled(wide, room, None, torch.ones(1, 1))
    wanted = wide.bfloat16()
    assert torch.equal(found.isnan(), wanted.isnan())
    assert torch.equal(found.nan_to_num(0.0).view(torch.int16), wanted.nan_to_num(0.0).view(torch.int16))


def test_what_is_no_number_stays_none(isa):
    x = torch.ones(4, 33)
    x[1, 5], x[2, 7], x[3, 9] = float("nan"), float("inf"), -float("inf")
    values, scale = NativePasses().quantized_input(x, torch.float32)
    wanted = TrainingPasses().quantized_input(x, torch.float32)
    assert torch.equal(values.isnan(), wanted.values.isnan()) and torch.equal(
        scale.isnan(), wanted.token_scale.isnan()
    )
    assert values[0].isfinite().all() and all(values[row].isnan().any() for row in (1, 2, 3))


@pytest.mark.parametrize("shape", [(1, 1), (3, 17), (70, 576), (2, 65, 48)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_rms_norm_and_its_gradient(isa, dtype, shape):
    torch.manual_seed(0)
    x, gradient = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    weight = torch.rand(shape[-1]) + 0.5
    out, inverse_rms = normalize(x, weight, 1e-5)
    grad_x, grad_weight = normalize_backward(gradient, x, weight, inverse_rms)
    wide, wide_weight = x.double().requires_grad_(), weight.double().requires_grad_()
    wanted_rms = 1 / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    wanted = wide * wanted_rms * wide_weight
    wanted.backward(gradient.double())
    assert torch.equal(inverse_rms, wanted_rms.float())
    assert torch.equal(out, (x.float() * inverse_rms * weight).to(dtype))
    step = 2e-6 if dtype == torch.float32 else 2**-7
    torch.testing.assert_close(grad_x.double(), wide.grad, rtol=step, atol=step)
    torch.testing.assert_close(grad_weight.double(), wide_weight.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_do_not_depend_on_threads(dtype):
    torch.manual_seed(0)
    x, gradient, weight = torch.randn(300, 96).to(dtype), torch.randn(300, 96).to(dtype), torch.rand(96)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            out, inverse_rms = normalize(x, weight, 1e-6)
            found.append((out, *normalize_backward(gradient, x, weight, inverse_rms)))
        finally:
            torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_what_the_library_does_not_read_is_torchs(counted):
    x = numbers((8, 6), torch.float32)
    passes, scale = NativePasses(), torch.ones(8, 1)
    assert passes.quantized_input(x, torch.float16).values.dtype == torch.float16
    assert passes.quantized_input(x.double(), torch.float64).values.dtype == torch.float64
    assert passes.codes(x.T, torch.ones(1), torch.float32).shape == (6, 8)
    assert torch.equal(passes.scaled(x.T.contiguous().T, torch.empty(8, 6), None, scale), x)
    assert passes.quantized_input(x[:0], torch.float32).values.shape == (0, 6)
    assert passes.quantized_input(x.to("meta"), torch.float32).values.device.type == "meta"
    assert normalize(x.double(), torch.ones(6), 1e-6) is None
    assert normalize(x, torch.ones(6).bfloat16(), 1e-6) is None
    assert not counted


def test_without_a_library_everything_is_torchs(monkeypatch):
    monkeypatch.setattr(training_passes.n, "load", lambda: (None, "not there"))
    x = numbers((8, 6), torch.float32)
    assert torch.equal(NativePasses().quantized_input(x, torch.float32).values, quantize_activations(x)[0])
    assert normalize(x, torch.ones(6), 1e-6) is None and normalize_backward(x, x, torch.ones(6), x[:, :1]) is None
