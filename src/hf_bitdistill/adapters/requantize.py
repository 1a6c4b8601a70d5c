"""A change of a ternary weight, rounded to a ternary weight again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..nn import BitLinear, TernaryLinear
from ..quantization import (
    check_packed_weight,
    effective_weight,
    fold_ternary,
    least_squares_start,
    pack_ternary,
)


@dataclass(frozen=True)
class LayerError:
    """Squared sizes of what a layer had, should have, and has.

    Attributes:
        wanted: of base + change.
        change: of the change.
        lost: of the difference between base + change and what it was rounded to.
        codes, changed: weights, and those of them whose code is another.
    """

    wanted: float
    change: float
    lost: float
    codes: int
    changed: int


def _square(values: Tensor) -> float:
    return float(values.double().square().sum())


@torch.no_grad()
def requantize(layer: BitLinear | TernaryLinear, change: Tensor) -> LayerError:
    """Add `change` `[R, C]` to the effective weight of `layer`, and give the layer the codes and scales nearest to the sum (least squares).

    An online layer gets a latent weight that has exactly these, and trains on from there.

    Raises:
        ValueError: the sum is not finite, or its codes are all equal.
    """
    options = layer.weight_granularity, layer.group_size
    before = layer.dequantize()
    wanted = before + change.to(before.device)
    if not torch.isfinite(wanted).all():
        raise ValueError("the adapter is not finite (it has a NaN or an infinity).")
    normalized, scale = least_squares_start(wanted, *options)
    codes = normalized.round().clamp_(-1, 1)
    packed = pack_ternary(codes)
    check_packed_weight(packed, layer.out_features, layer.in_features)
    after = effective_weight(codes, scale, layer.group_size)
    if isinstance(layer, TernaryLinear):
        layer.weight, layer.weight_scale = packed, scale
    else:
        layer.weight.copy_(fold_ternary(normalized, scale, *options, layer.weight.dtype))
    changed = int((before.sign() != codes).sum())
    return LayerError(_square(wanted), _square(change), _square(after - wanted), codes.numel(), changed)
