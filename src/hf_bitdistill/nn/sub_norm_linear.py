"""A linear layer of floats behind a SubLN: what a ternary one becomes when it is dequantised."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .sub_norm import SubLN


class SubNormLinear(nn.Linear):
    """`nn.Linear` on the output of a [`SubLN`], `rms_norm`.

    Args:
        weight: `[R, C]`.
        bias: `[R]` or `None`.
        rms_norm: of width C.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, rms_norm: SubLN):
        nn.Module.__init__(self)  # (nn.Linear's own would draw weights)
        self.out_features, self.in_features = weight.shape
        self.weight = nn.Parameter(weight)
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias))
        self.rms_norm = rms_norm

    def forward(self, x: Tensor) -> Tensor:
        """`[..., C]` -> `[..., R]`."""
        return F.linear(self.rms_norm(x), self.weight, self.bias)
