"""SubLN: the RMSNorm in front of a quantised projection."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor, nn


class SubLN(nn.Module):
    """`x / sqrt(mean(x^2) + eps) * weight`, in float32 with the mean in float64 (BitNet Distillation, section 3.1).

    The name deliberately lacks "RMSNorm": transformers initialises every module so named by the host architecture's rule
    (Gemma's is zeros), while a SubLN starts at ones in any architecture.

    Args:
        features: width of the input.
        eps: added to the mean square.
    """

    def __init__(self, features: int, eps: float = 1e-6, device=None, dtype=None):
        super().__init__()
        # As float32 has it, like the native library's. Rounded here, not in the forward, where torch.compile would break its graph.
        self.eps = ctypes.c_float(eps).value
        self.weight = nn.Parameter(torch.ones(features, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """`[..., features]` -> the same shape and dtype."""
        values = x.float()
        # In float64 the mean does not depend on the order of summation, so every backend gets the same float32.
        mean_square = values.double().square().sum(dim=-1, keepdim=True) / values.shape[-1]
        inverse_rms = (1.0 / (mean_square + self.eps).sqrt()).float()
        return (values * inverse_rms * self.weight.float()).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps:g}"
