"""`KL(student || teacher)`: the student says nothing that the teacher would not."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .base import Divergence


class ReverseKL(Divergence):
    """`sum_i p_i log(p_i / t_i)`, whose gradient is `p_i (log(p_i / t_i) - KL)` (MiniLLM, arXiv 2306.08543)."""

    name = "reverse_kl"

    def total(self, log_p: Tensor, log_t: Tensor) -> Tensor:
        return F.kl_div(log_t, log_p, reduction="sum", log_target=True)

    def gradient(self, log_p: Tensor, log_t: Tensor) -> Tensor:
        ratio = log_p - log_t
        p = log_p.exp()
        ratio -= (p * ratio).sum(-1, keepdim=True)
        return ratio.mul_(p)
