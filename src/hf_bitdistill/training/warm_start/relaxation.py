"""A ternary layer whose codes are soft and whose quantiser has parameters: what a warm start trains."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...nn import BitLinear
from ...quantization import (
    absmean_scale,
    expand_weight_scale,
    fold_ternary,
    least_squares_start,
    num_groups,
    quantize_activations,
    sum_per_scale,
)


def soft_ternary(normalized: Tensor, sharpness: float) -> Tensor:
    """`(tanh(k (u - 1/2)) + tanh(k (u + 1/2))) / 2`: odd, increasing, and `clip(round(u), -1, 1)` as `k` grows.

    Args:
        normalized: `u`, weights in units of the scale, any shape.
        sharpness: `k > 0`. At 2 the function is nearly the identity between -1 and 1.
    """
    return 0.5 * (torch.tanh(sharpness * (normalized - 0.5)) + torch.tanh(sharpness * (normalized + 0.5)))


def hard_ternary(normalized: Tensor, sharpness: float) -> Tensor:
    """`clip(round(u), -1, 1)` with the gradient of [`soft_ternary`]."""
    soft = soft_ternary(normalized, sharpness)
    return soft + (normalized.detach().round().clamp(-1, 1) - soft.detach())


def _factor(logit: Tensor) -> Tensor:
    """A factor between 0 and 2, 1 at the start."""
    return 2.0 * torch.sigmoid(logit)


class RelaxedBitLinear(nn.Module):
    """Stands in for a [`BitLinear`] while its window is trained.

    The weight is `W' = W + g0 U`, with an update `U` of low rank (or a whole matrix) in units of the start scale `g0`. With
    threshold factors `t` (0 to 2, at first 1) and mean factors `m` (-1 to 1, at first 0) a group of columns, and scale
    factors `s` (0 to 2, at first 1) at the student's granularity:

        u = (W' - m mean_group(W)) / (g0 t),    effective weight = (g0 s) * ternary(u)

    `t` and `m` move only the boundaries between the codes. The student has no row offset: what the mean factor does ends in
    the codes. So the result is codes and scales of the student's own format, which [`fold`] writes into `W`.

    Args:
        layer: stays as it is until `fold`; its SubLN and bias are used (and may be trained) in place.
        rank: 0 for a whole matrix.
        factor_group_size: columns that share `t` and `m`.
        start: `"absmean"` or `"least_squares"`, where `g0` comes from.
        generator: of the low-rank start, on the CPU.
    """

    scale: Tensor
    start: Tensor
    mean: Tensor
    update_in: nn.Parameter | None

    def __init__(self, layer: BitLinear, rank: int, factor_group_size: int, start: str, generator: torch.Generator):
        super().__init__()
        self.layer = layer
        self.sharpness: float | None = None  # None: hard
        self.final_sharpness = 1.0
        # Whether the weight is computed again in the backward pass. What it leaves for that pass else is several times the layer.
        self.recompute = False
        self.factor_group_size = factor_group_size
        weight = layer.weight.detach().float()
        device, (rows, columns) = weight.device, weight.shape
        if start == "least_squares":
            _, scale = least_squares_start(weight, layer.weight_granularity, layer.group_size)
        else:
            scale = absmean_scale(weight, layer.weight_granularity, layer.group_size)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("start", weight / self._expand(scale), persistent=False)
        groups = num_groups(columns, factor_group_size)
        sums = sum_per_scale(self.start, "group", factor_group_size)
        counts = sum_per_scale(torch.ones_like(self.start[:1]), "group", factor_group_size)
        self.register_buffer("mean", sums / counts, persistent=False)
        self.scale_logit = nn.Parameter(torch.zeros_like(scale))
        self.threshold_logit = nn.Parameter(torch.zeros(rows, groups, device=device))
        self.mean_logit = nn.Parameter(torch.zeros(rows, groups, device=device))
        if 0 < rank * (rows + columns) < rows * columns:
            # The usual low-rank start: one factor zero, so that nothing changes at first.
            first = torch.randn(rank, columns, generator=generator) / rank**0.5
            self.update_in = nn.Parameter(first.to(device))
            self.update_out = nn.Parameter(torch.zeros(rows, rank, device=device))
        else:
            self.update_in = None
            self.update_out = nn.Parameter(torch.zeros(rows, columns, device=device))

    def _expand(self, scale: Tensor) -> Tensor:
        return expand_weight_scale(scale, self.layer.weight.shape[1], self.layer.group_size)

    def _expand_factor(self, values: Tensor) -> Tensor:
        return expand_weight_scale(values, self.layer.weight.shape[1], self.factor_group_size)

    def updates(self) -> list[nn.Parameter]:
        return [self.update_out] if self.update_in is None else [self.update_in, self.update_out]

    def factors(self) -> list[nn.Parameter]:
        return [self.scale_logit, self.threshold_logit, self.mean_logit]

    def own_tensors(self) -> dict[str, Tensor]:
        """Everything but what belongs to the layer: with these values a new stand-in of the same layer goes on where this one was."""
        own = (*self.named_parameters(recurse=False), *self.named_buffers(recurse=False))
        return {name: tensor.detach() for name, tensor in own}

    def normalized(self) -> Tensor:
        """`u`, float32 `[R, C]`, under autocast too: it decides the codes."""
        update: Tensor = self.update_out
        if self.update_in is not None:
            with torch.autocast(update.device.type, enabled=False):
                update = update @ self.update_in
        offset = (_factor(self.mean_logit) - 1.0) * self.mean
        return (self.start + update - self._expand_factor(offset)) / self._expand_factor(
            _factor(self.threshold_logit).clamp(min=1e-3)
        )

    def weight_scale(self) -> Tensor:
        """Of the student's granularity, float32."""
        return self.scale * _factor(self.scale_logit)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., C]` -> `[..., R]`, differentiable."""
        layer = self.layer
        if not x.numel():
            # An expert that no token was sent to has no gradient, whether it is called (as in several processes) or not.
            return x.new_zeros((*x.shape[:-1], layer.out_features))
        if layer.rms_norm is not None:
            x = layer.rms_norm(x)
        if layer.activation_bits is not None:
            x_q, s = quantize_activations(x)
            x = x + ((x_q / s).to(x.dtype) - x).detach()
        if self.recompute and torch.is_grad_enabled():
            weight = checkpoint(self._weight, x.dtype, use_reentrant=False, preserve_rng_state=False)
        else:
            weight = self._weight(x.dtype)
        return F.linear(x, weight, layer.bias)

    def _weight(self, dtype: torch.dtype) -> Tensor:
        u = self.normalized()
        codes = hard_ternary(u, self.final_sharpness) if self.sharpness is None else soft_ternary(u, self.sharpness)
        return (codes * self._expand(self.weight_scale())).to(dtype)

    @torch.no_grad()
    def fold(self) -> None:
        """Write the hard codes and the scales into the latent weight of the layer, see [`fold_ternary`]."""
        layer = self.layer
        layer.weight.copy_(
            fold_ternary(
                self.normalized(),
                self.weight_scale(),
                layer.weight_granularity,
                layer.group_size,
                layer.weight.dtype,
            )
        )
