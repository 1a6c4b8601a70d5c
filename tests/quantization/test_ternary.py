"""The arithmetic against formulas written out naively here."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from hf_bitdistill.quantization import (
    absmean_scale,
    expand_weight_scale,
    fake_quantized_linear,
    integer_accumulators,
    leaking_linear,
    mixed_linear,
    quantize_activations,
    sum_per_scale,
    ternarize,
    ternary_linear,
    weight_scale_shape,
)


GRANULARITIES = [("tensor", None), ("row", None), ("group", 64)]


def naive_ternarize(weight, granularity, group_size):
    rows, columns = weight.shape
    codes, gamma = torch.empty(rows, columns), torch.empty(rows, columns)
    size = {"tensor": columns, "row": columns, "group": group_size}[granularity]
    for r in range(rows):
        for start in range(0, columns, size):
            block = weight if granularity == "tensor" else weight[r, start : start + size]
            scale = max(block.abs().double().mean().item(), 1e-5)
            for c in range(start, min(start + size, columns)):
                # Python's round() is half to even, like the definition.
                codes[r, c] = min(1, max(-1, round(weight[r, c].item() / scale)))
                gamma[r, c] = scale
    return codes, gamma


@pytest.mark.parametrize("granularity, group_size", GRANULARITIES)
@pytest.mark.parametrize("columns", [1, 64, 100, 192])
def test_ternarize_follows_the_definition(granularity, group_size, columns):
    weight = torch.randn(7, columns, generator=torch.Generator().manual_seed(columns))
    codes, scale = ternarize(weight, granularity, group_size)
    expected_codes, expected_gamma = naive_ternarize(weight, granularity, group_size)
    assert tuple(scale.shape) == weight_scale_shape(7, columns, granularity, group_size)
    assert scale.dtype == torch.float32
    torch.testing.assert_close(codes, expected_codes, rtol=0, atol=0)
    torch.testing.assert_close(expand_weight_scale(scale, columns, group_size).expand(7, columns), expected_gamma)


def test_rounding_is_half_to_even_and_scale_is_clamped():
    # mean |w| is 1, so 0.5 and 1.5 are ties: 0.5 -> 0, 1.5 -> 2 -> clipped to 1.
    codes, scale = ternarize(torch.tensor([[0.5, -0.5, 1.5, -1.5]]))
    assert scale.item() == 1.0
    assert codes.tolist() == [[0, 0, 1, -1]]
    assert absmean_scale(torch.zeros(2, 3)).item() == pytest.approx(1e-5)


def test_scale_of_half_precision_weights_is_taken_in_float32():
    weight = torch.randn(64, 256).to(torch.bfloat16)
    assert absmean_scale(weight).item() == pytest.approx(weight.double().abs().mean().item(), rel=1e-6)


@pytest.fixture
def any_threads():
    before = torch.get_num_threads()
    yield (1, 2, 4)
    torch.set_num_threads(before)


# 2048 x 8192: its mean had another last bit with two threads. One row, and many: sums with a single result, which torch cuts up.
@pytest.mark.parametrize("shape", [(2048, 8192), (577, 1535), (1, 70001), (70001, 1), (3, 40001)])
def test_scales_do_not_depend_on_threads_or_strides(shape, any_threads):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.02
    for dtype in (torch.float32, torch.bfloat16):
        latent = weight.to(dtype)
        for granularity, group_size in GRANULARITIES if shape[0] < 2048 else GRANULARITIES[:1]:
            results = []
            for threads in any_threads:
                torch.set_num_threads(threads)
                results += [absmean_scale(latent, granularity, group_size)]
                results += [absmean_scale(latent.T.contiguous().T, granularity, group_size)] if threads == 2 else []
            assert all(torch.equal(results[0], other) for other in results[1:]), (dtype, granularity)
            if granularity == "tensor":
                assert results[0].item() == pytest.approx(latent.double().abs().mean().item(), rel=1e-6)


@pytest.mark.parametrize("shape", [(300, 401), (1, 40001)])
def test_sums_of_a_search_do_not_depend_on_threads(shape, any_threads):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    results = []
    for threads in any_threads:
        torch.set_num_threads(threads)
        results.append(sum_per_scale(values))
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_the_sum_of_a_matrix_is_that_of_its_rows(any_threads):
    # Whoever holds some rows only (a shard) can keep the order: sums of rows first.
    weight = torch.randn(2048, 96, generator=torch.Generator().manual_seed(0))
    parts = torch.cat([sum_per_scale(part.abs(), "row") for part in weight.split(512)])
    assert torch.equal(parts.double().sum().div(weight.numel()).float().view(1), absmean_scale(weight))


@pytest.mark.parametrize("granularity, group_size", GRANULARITIES)
def test_gradient_of_a_scale_is_that_of_the_mean(granularity, group_size):
    weight = torch.randn(7, 100, generator=torch.Generator().manual_seed(0)).requires_grad_()
    absmean_scale(weight, granularity, group_size, differentiable=True).sum().backward()
    counts = {"tensor": 700, "row": 100}.get(granularity)
    counts = torch.tensor([64] * 64 + [36] * 36) if counts is None else counts
    torch.testing.assert_close(weight.grad, weight.detach().sign() / counts)


def test_quantize_activations():
    x = torch.tensor([[0.0, 1.0, -2.0], [0.0, 0.0, 0.0], [3.0, -127.0, 126.5]])
    x_q, s = quantize_activations(x)
    assert x_q.tolist() == [[0, 64, -127], [0, 0, 0], [3, -127, 126]]  # 63.5 -> 64 and 126.5 -> 126: half to even
    torch.testing.assert_close(s.squeeze(1), torch.tensor([63.5, 127 / 1e-5, 1.0]))


@pytest.mark.parametrize("granularity, group_size", GRANULARITIES)
@pytest.mark.parametrize("activation_bits", [8, None])
def test_ternary_linear_against_exact_integers(granularity, group_size, activation_bits):
    generator = torch.Generator().manual_seed(3)
    weight, x = torch.randn(9, 150, generator=generator), torch.randn(2, 5, 150, generator=generator)
    bias = torch.randn(9, generator=generator)
    codes, scale = ternarize(weight, granularity, group_size)
    gamma = expand_weight_scale(scale, 150, group_size).double()
    if activation_bits is None:
        expected = x.double() @ (codes.double() * gamma).T
    else:
        x_q, s = quantize_activations(x)
        expected = x_q.double() @ (codes.double() * gamma).T / s.double()
    y = ternary_linear(x, codes, scale, bias, group_size=group_size, activation_bits=activation_bits)
    torch.testing.assert_close(y, (expected + bias.double()).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("columns", [1, 3, 576, 4096])
def test_accumulators_are_exact(columns):
    generator = torch.Generator().manual_seed(columns)
    x = torch.randn(4, columns, generator=generator)
    x[0], x[1], x[2] = 1.0, -1.0, 0.0
    codes = torch.randint(-1, 2, (6, columns), generator=generator)
    x_q, _ = quantize_activations(x)
    expected = (x_q.long()[:, None, :] * codes[None]).sum(-1)
    assert torch.equal(integer_accumulators(x, codes).long(), expected)
    grouped = integer_accumulators(x, codes, group_size=64)
    assert torch.equal(grouped.long().sum(-1), expected)
    # The product of the layer itself is exact too: with unit scales it returns the integers divided by s.
    y = ternary_linear(x, codes.float(), torch.ones(1))
    _, s = quantize_activations(x)
    torch.testing.assert_close(y, expected.float() / s, rtol=1e-6, atol=0)


def test_integer_sums_that_float32_could_not_hold_are_refused():
    with pytest.raises(ValueError, match="not exact"):
        ternary_linear(torch.ones(1, 131073), torch.ones(1, 131073), torch.ones(1))


@pytest.mark.parametrize("granularity, group_size", GRANULARITIES)
def test_training_forward_is_the_deployed_forward(granularity, group_size):
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(3, 130, generator=generator), torch.randn(8, 130, generator=generator)
    codes, scale = ternarize(weight, granularity, group_size)
    deployed = ternary_linear(x, codes, scale, group_size=group_size)
    trained = fake_quantized_linear(x, weight, granularity=granularity, group_size=group_size)
    if granularity == "group":
        torch.testing.assert_close(trained, deployed)
    else:
        assert torch.equal(trained, deployed)


@pytest.mark.parametrize("granularity, group_size", GRANULARITIES)
@pytest.mark.parametrize("activation_bits", [8, None])
@pytest.mark.parametrize("share", [1.0, 0.4, 0.0])
def test_gradients_against_finite_differences_of_the_surrogate(granularity, group_size, activation_bits, share):
    """The straight-through gradient is that of a surrogate in which rounding is a constant offset."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(4, 70, generator=generator)
    weight = torch.randn(6, 70, generator=generator)
    bias = torch.randn(6, generator=generator)
    upstream = torch.randn(4, 6, generator=generator)

    codes, scale = ternarize(weight, granularity, group_size)
    weight_offset = share * (codes * expand_weight_scale(scale, 70, group_size) - weight).double()
    x_q, s = quantize_activations(x)
    x_offset = share * (x_q / s - x).double() if activation_bits == 8 else torch.zeros_like(x).double()

    def surrogate(x, weight, bias):
        return (F.linear(x + x_offset, weight + weight_offset, bias) * upstream.double()).sum()

    inputs = [x.clone().requires_grad_(), weight.clone().requires_grad_(), bias.clone().requires_grad_()]
    options = {"granularity": granularity, "group_size": group_size, "activation_bits": activation_bits}
    y = fake_quantized_linear(*inputs, **options) if share == 1.0 else mixed_linear(*inputs, share=share, **options)
    (y * upstream).sum().backward()
    step = 1e-4
    for index, leaf in enumerate(inputs):
        flat = leaf.grad.reshape(-1)
        for position in range(0, flat.numel(), 37):
            values = [tensor.detach().double() for tensor in inputs]
            plus, minus = values[index].clone(), values[index].clone()
            plus.view(-1)[position] += step
            minus.view(-1)[position] -= step
            up = surrogate(*(plus if i == index else v for i, v in enumerate(values)))
            down = surrogate(*(minus if i == index else v for i, v in enumerate(values)))
            assert flat[position].item() == pytest.approx(((up - down) / (2 * step)).item(), rel=2e-4, abs=2e-4)


def test_share_zero_is_full_precision():
    x, weight = torch.randn(3, 16), torch.randn(4, 16)
    torch.testing.assert_close(mixed_linear(x, weight, share=0.0), F.linear(x, weight))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_rounds_only_the_result(dtype):
    x, weight = torch.randn(5, 512), torch.randn(16, 512)
    exact = fake_quantized_linear(x, weight)
    with torch.autocast("cpu", dtype=dtype):
        y = fake_quantized_linear(x, weight)
    assert y.dtype == dtype
    # Two roundings to 8 (11) significant bits, whatever the number of summands.
    torch.testing.assert_close(y.float(), exact, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


def test_packed_layers_pass_gradients_to_their_input():
    x = torch.randn(2, 20, requires_grad=True)
    codes, scale = ternarize(torch.randn(3, 20))
    ternary_linear(x, codes, scale).sum().backward()
    torch.testing.assert_close(x.grad, (codes * scale).sum(0).expand(2, 20))


@pytest.mark.parametrize(("granularity", "group_size"), [("tensor", None), ("row", None), ("group", 64)])
def test_dead_zone_leak(granularity, group_size):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((3, 128), generator=generator, requires_grad=True)
    weight = torch.randn((5, 128), generator=generator, requires_grad=True)
    options = {"granularity": granularity, "group_size": group_size}
    codes, scale = ternarize(weight.detach(), granularity, group_size)
    x_q, s = quantize_activations(x.detach())
    expected = torch.where(codes == 0, 0.25 * weight.detach(), codes * expand_weight_scale(scale, 128, group_size))
    assert 0 < (codes == 0).sum() < codes.numel()
    y = leaking_linear(x, weight, leak=0.25, **options)
    torch.testing.assert_close(y, (x_q / s) @ expected.T, rtol=1e-5, atol=1e-5)
    y.sum().backward()
    torch.testing.assert_close(weight.grad, (x_q / s).sum(0).expand(5, -1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x.grad, expected.sum(0).expand(3, -1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("leak", [0.0, 0.25])
@pytest.mark.parametrize(("granularity", "group_size"), [("tensor", None), ("row", None), ("group", 64)])
def test_scale_gradient(granularity, group_size, leak):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((3, 96), generator=generator)
    weight = torch.randn((5, 96), generator=generator)
    options = {"granularity": granularity, "group_size": group_size}
    linear = partial(leaking_linear, leak=leak) if leak else fake_quantized_linear

    def run(**more):
        latent = weight.clone().requires_grad_()
        y = linear(x, latent, **options, **more)
        y.square().sum().backward()
        return y.detach(), latent.grad

    y, without = run()
    same, learned = run(scale_gradient=True)
    torch.testing.assert_close(same, y, rtol=0, atol=0)
    # dL/dgamma over the weights that share it, and its part of each of them.
    codes, _ = ternarize(weight, granularity, group_size)
    per_scale = sum_per_scale(without * codes, granularity, group_size)
    counts = sum_per_scale(torch.ones_like(weight), granularity, group_size)
    expected = expand_weight_scale(per_scale / counts, 96, group_size) * weight.sign()
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(learned - without, expected, rtol=1e-3, atol=1e-3)
