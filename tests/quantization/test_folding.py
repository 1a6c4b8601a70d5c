import pytest
import torch

from hf_bitdistill.quantization import (
    expand_weight_scale,
    fold_ternary,
    least_squares_start,
    ternarize,
    weight_scale_shape,
)


GRANULARITIES = [("tensor", None), ("row", None), ("group", 64)]


def example(granularity, group_size, rows=24, columns=150, spread=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    normalized = spread * torch.randn(rows, columns, generator=generator)
    shape = weight_scale_shape(rows, columns, granularity, group_size)
    return normalized, 0.01 + torch.rand(shape, generator=generator)


@pytest.mark.parametrize("granularity,group_size", GRANULARITIES)
@pytest.mark.parametrize("spread", [0.3, 1.0, 30.0])  # few nonzeros, the usual share, hardly a zero
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_quantiser_finds_the_folded_codes_and_scale(granularity, group_size, spread, dtype):
    normalized, scale = example(granularity, group_size, spread=spread)
    normalized[:, ::20] = 0.8  # no group without a nonzero code
    latent = fold_ternary(normalized, scale, granularity, group_size, dtype)
    assert latent.dtype == dtype
    codes, found = ternarize(latent, granularity, group_size)
    assert torch.equal(codes, normalized.round().clamp(-1, 1))
    torch.testing.assert_close(found, scale, rtol=1e-6 if dtype == torch.float32 else 2**-8, atol=0)


def test_weights_on_the_boundary_keep_their_code():
    normalized = torch.tensor([[0.4999, -0.5001, 0.5001, -0.4999, 0.0, 1e-9, 0.5001, 0.0]])
    for dtype in (torch.float32, torch.bfloat16):
        codes, _ = ternarize(fold_ternary(normalized, torch.tensor([0.37]), dtype=dtype))
        assert codes.tolist() == [[0, -1, 1, 0, 0, 0, 1, 0]]


def test_the_order_by_distance_from_the_boundary_is_kept():
    normalized, scale = example("tensor", None)
    latent = fold_ternary(normalized, scale).abs().flatten()
    clear = (normalized.abs() - 0.5).abs().flatten() > 0.02
    order = normalized.abs().flatten()[clear].argsort()
    assert (latent[clear][order].diff() >= 0).all()


def test_groups_without_a_nonzero_code_have_no_effect():
    normalized, scale = example("group", 64)
    normalized[3, :64] *= 0.01
    codes, found = ternarize(fold_ternary(normalized, scale, "group", 64), "group", 64)
    assert not codes[3, :64].any() and found[3, 0] == pytest.approx(1e-5)
    others = torch.ones_like(scale, dtype=torch.bool)
    others[3, 0] = False
    torch.testing.assert_close(found[others], scale[others], rtol=1e-6, atol=0)


def test_refused_values():
    normalized, scale = example("row", None)
    with pytest.raises(ValueError, match="not finite"):
        fold_ternary(normalized * float("nan"), scale, "row")
    with pytest.raises(ValueError, match="positive"):
        fold_ternary(normalized, -scale, "row")


@pytest.mark.parametrize("granularity,group_size", GRANULARITIES)
def test_least_squares_is_nearer_than_absmean(granularity, group_size):
    weight = torch.randn(24, 150, generator=torch.Generator().manual_seed(2)) * 0.05

    def error(codes, scale):
        return (weight - codes * expand_weight_scale(scale, 150, group_size)).square().sum().item()

    normalized, scale = least_squares_start(weight, granularity, group_size)
    plain = error(*ternarize(weight, granularity, group_size))
    best = error(normalized.round().clamp(-1, 1), scale)
    # Gaussian weights: absmean leaves about 0.26 of the squared norm, the best ternary quantiser 0.19.
    assert best < 0.8 * plain
    if granularity == "tensor":
        scan = [
            error((weight / s).round().clamp(-1, 1), s.reshape(1)) for s in torch.linspace(0.5, 2, 61) * scale.item()
        ]
        assert best <= min(scan) * 1.001
    folded = ternarize(fold_ternary(normalized, scale, granularity, group_size), granularity, group_size)
    assert error(*folded) == pytest.approx(best, rel=1e-5)
