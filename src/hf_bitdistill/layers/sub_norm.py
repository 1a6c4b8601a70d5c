"""SubLN: the RMSNorm in front of a quantised projection."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SubLN(nn.Module):
    """`x / sqrt(mean(x^2) + eps) * weight`, computed in float32 (BitNet Distillation, section 3.1).

    The name deliberately lacks "RMSNorm": transformers initialises every module so named by the host architecture's rule
    (Gemma's is zeros), while a SubLN starts at ones in any architecture.

    Args:
        features: width of the input.
        eps: added to the mean square.
    """

    def __init__(self, features: int, eps: float = 1e-6, device=None, dtype=None):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(features, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """`[..., features]` -> the same shape and dtype."""
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"
