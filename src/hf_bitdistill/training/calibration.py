"""Start values for the SubLNs: `calibrate_sub_norm`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..nn import SubLN, TernaryLinear, full_precision
from ..quantization import accumulation_dtype
from .observation import Observer, observe, token_rows


class _ChannelStatistics:
    """Sums over tokens of `x * x_hat` and `x_hat^2` per channel, with `x_hat = x / rms(x)`; float64 `[C]` each."""

    def __init__(self, sub_norm: SubLN):
        self.eps = sub_norm.eps
        features, device = sub_norm.weight.shape[0], sub_norm.weight.device
        dtype = accumulation_dtype(device)
        self.cross = torch.zeros(features, dtype=dtype, device=device)
        self.square = torch.zeros(features, dtype=dtype, device=device)

    def update(self, x: Tensor, mask: Tensor | None) -> None:
        x = token_rows(x.detach(), mask).float()
        x_hat = x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + self.eps)
        # (The weight may lie elsewhere while the layer does not compute.)
        self.cross += (x * x_hat).sum(dim=0).to(self.cross.device)
        self.square += x_hat.square().sum(dim=0).to(self.square.device)

    def solution(self) -> Tensor | None:
        """`None` where no token came."""
        # A channel that is never active contributes nothing whatever its weight; give it the average of the others.
        alive = self.square > 0
        if not alive.any():
            return None
        weight = self.cross / self.square.clamp(min=torch.finfo(self.square.dtype).tiny)
        return torch.where(alive, weight, weight[alive].mean())


def _place(name: str) -> str:
    """The name of a SubLN without its last number: of its expert, where it has one, else of its layer."""
    return re.sub(r"(.*)\.\d+\.", r"\1.*.", name)


@torch.no_grad()
def calibrate_sub_norm(model: nn.Module, batches: Iterable[Mapping[str, Any]]) -> int:
    """Set each SubLN weight so that, without quantisation, the student computes nearly what its source model computes.

    A SubLN replaces the input `x` of a projection by `w * x / rms(x)`. Per channel `c` the least-squares solution of
    `w_c * x_c / rms(x) = x_c` over the calibration tokens is `w_c = sum(x_c * x_hat_c) / sum(x_hat_c^2)`. The inputs are
    those of the source model: they are collected with SubLNs bypassed and quantisation off. The SubLN of an expert that no token
    was sent to takes the average of the layer's other experts.

    Args:
        model: an online student that has not been trained yet.
        batches: a few batches of model inputs: mappings with `input_ids` `[B, T]` int64 and optionally `attention_mask`
            `[B, T]` (padding is left out); `labels` are ignored. A few thousand tokens are plenty.

    Returns:
        Number of SubLNs set (0 for `sub_norm="none"`).

    Raises:
        ValueError: `batches` is empty, or the student is packed.
    """
    if any(isinstance(module, TernaryLinear) for module in model.modules()):
        raise ValueError("calibrate_sub_norm sets the start values of an online student; this one is packed.")
    sub_norms = {name: module for name, module in model.named_modules() if isinstance(module, SubLN)}
    if not sub_norms:
        return 0
    statistics = {name: _ChannelStatistics(module) for name, module in sub_norms.items()}

    def bypass(statistics: _ChannelStatistics) -> Observer:
        def update(x: Tensor, _, mask: Tensor | None) -> Tensor:
            statistics.update(x, mask)
            return x

        return update

    observers: dict[nn.Module, Observer] = {module: bypass(statistics[name]) for name, module in sub_norms.items()}
    with full_precision(model):
        observe(model, observers, batches, "calibrate_sub_norm")
    solutions = {name: statistics[name].solution() for name in sub_norms}
    averages: dict[str, list[Tensor]] = {}
    for name, solution in solutions.items():
        if solution is not None:
            averages.setdefault(_place(name), []).append(solution.mean())
    for name, module in sub_norms.items():
        others = averages.get(_place(name), [torch.ones(())])
        solution = solutions[name]
        module.weight.copy_(torch.stack(others).mean() if solution is None else solution)
    return len(sub_norms)
