"""Latent weights for given ternary codes and scales: the inverse of the absmean quantiser.

A search for good codes and scales (least squares, a block-wise warm start) has its own variables. The online student has
one: a latent weight, from which it takes `gamma = mean(|W|)` and `round(W / gamma)`. [`fold_ternary`] writes a latent weight
from which it takes exactly the codes and the scale that were found.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .ternary import MIN_SCALE, absmean_scale, accumulation_dtype, expand_weight_scale, sum_per_scale, ternarize


# Distance kept from the rounding boundary at 1/2, in units of the scale: bfloat16 rounds a latent weight by at most 1/256
# of it, and the scale computed from such weights moves by less than that.
_MARGIN = 1 / 64
# Keeps the stretch below finite where every nonzero weight lies on the margin.
_SOFTENING = 1e-3
_SCALE_ROUNDS = 4


@torch.no_grad()
def fold_ternary(
    normalized: Tensor,
    weight_scale: Tensor,
    granularity: str = "tensor",
    group_size: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """A latent weight `W` with `ternarize(W) == (clip(round(normalized), -1, 1), weight_scale)`.

    With `v = |normalized|`, let `n` weights share a scale `g`, of which `m > 0` have a nonzero code. Weights with code 0 keep
    their place below the boundary, `|W| = g v` (`v <= 1/2 - margin`), and add `Z = sum(v)`. The others become
    `|W| = g (1/2 + margin + a (v - 1/2 - margin))`, with the one `a > 0` for which their sum is `g (n - Z)`: then
    `mean(|W|) = g`. Such an `a` always exists, because `Z < (n - m) / 2`. The order of the weights by their distance from the
    boundary is kept, so that training goes on from where the search ended.

    What is exact: the codes, in float32, float16 and bfloat16. The scale agrees to float32 rounding (relative error below
    1e-6) for float32 latent weights and to the rounding of the weights themselves (below 2^-8) for 16-bit ones. Where all
    codes that share a scale are 0, `W` is 0 and its scale is the quantiser's lower clamp, 1e-5: the effective weight is
    exactly zero either way.

    Args:
        normalized: `[R, C]` floating point, the weight in units of the scale, with its boundaries at +-1/2.
        weight_scale: `[1]`, `[R]` or `[R, G]`, positive; values below 1e-5 are raised to it (the quantiser's clamp).
        dtype: of the result.

    Raises:
        ValueError: a value is not finite, or a scale is not positive.
    """
    if not torch.isfinite(normalized).all() or not torch.isfinite(weight_scale).all():
        raise ValueError("fold_ternary: the weights or the scales are not finite (NaN or infinity).")
    if not (weight_scale > 0).all():
        raise ValueError("fold_ternary: every scale must be positive.")
    columns = normalized.shape[1]

    def expand(values: Tensor) -> Tensor:
        return expand_weight_scale(values, columns, group_size)

    def total(values: Tensor) -> Tensor:
        return sum_per_scale(values, granularity, group_size)

    # The sums decide the last bits of the scale.
    wide = accumulation_dtype(normalized.device)
    normalized = normalized.to(wide)
    scale = weight_scale.float().clamp(min=MIN_SCALE)
    codes = normalized.round().clamp_(-1, 1)
    nonzero = codes != 0
    magnitude = normalized.abs()
    small = torch.where(nonzero, 0.0, magnitude.clamp(max=0.5 - _MARGIN))
    large = torch.where(nonzero, (magnitude - 0.5 - _MARGIN).clamp(min=0) + _SOFTENING, 0.0)
    count = total(torch.ones_like(magnitude))
    rest = count - total(small) - (0.5 + _MARGIN) * total(nonzero.to(wide))
    stretch = rest / total(large).clamp(min=_SOFTENING)
    large = torch.where(nonzero, 0.5 + _MARGIN + expand(stretch) * large, 0.0)
    signed = torch.where(nonzero, large * codes, small * normalized.sign())
    signed = torch.where(expand(total(nonzero.to(wide))) > 0, signed, 0.0)

    target = factor = scale.to(wide)
    latent = (signed * expand(factor)).to(dtype)
    for _ in range(_SCALE_ROUNDS):
        factor = factor * (target / absmean_scale(latent, granularity, group_size).to(wide))
        closer = (signed * expand(factor)).to(dtype)
        before = (absmean_scale(latent, granularity, group_size) - scale).abs().max()
        if (absmean_scale(closer, granularity, group_size) - scale).abs().max() >= before:
            break
        latent = closer
    return latent


@torch.no_grad()
def least_squares_start(
    weight: Tensor, granularity: str = "tensor", group_size: int | None = None, iterations: int = 20
) -> tuple[Tensor, Tensor]:
    """Ternary codes and scales that are nearest to `weight`: a local minimum of `sum((W - g T)^2)`.

    Alternates the two closed forms, each optimal for the other (the first stage of PT2-LLM, ICLR 2026, without its row
    offset): `T = clip(round(W / g), -1, 1)` and `g = sum(W T) / sum(T^2)`. Starts from the absmean scale and never gets worse.

    Args:
        weight: `[R, C]`, any floating dtype.

    Returns:
        `(normalized, weight_scale)`: `W / g`, float32 `[R, C]`, and `g`, float32 `[1]`, `[R]` or `[R, G]`: what
        [`fold_ternary`] takes.
    """
    weight = weight.detach().float()
    columns, wide = weight.shape[1], accumulation_dtype(weight.device)
    codes, scale = ternarize(weight, granularity, group_size)
    for _ in range(iterations):
        products = sum_per_scale((weight * codes).to(wide), granularity, group_size)
        squares = sum_per_scale(codes.to(wide).square(), granularity, group_size)
        better = torch.where(squares > 0, products / squares.clamp(min=1), scale.to(wide)).float()
        better = better.clamp(min=MIN_SCALE)
        new_codes = (weight / expand_weight_scale(better, columns, group_size)).round_().clamp_(-1, 1)
        done = torch.equal(new_codes, codes) and torch.equal(better, scale)
        codes, scale = new_codes, better
        if done:
            break
    return weight / expand_weight_scale(scale, columns, group_size), scale
