"""The generalised Jensen-Shannon divergence, between the two KLs."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Divergence


class GeneralizedJSD(Divergence):
    """`beta KL(t || m) + (1 - beta) KL(p || m)` with `m = beta t + (1 - beta) p` (GKD, arXiv 2306.13649, equation 1).

    Divided by beta it goes to the forward KL as beta goes to 0, divided by `1 - beta` to the reverse KL as beta goes to 1; itself it
    goes to 0 at both ends. Its gradient is `(1 - beta) p_i (log(p_i / m_i) - KL(p || m))`.

    Args:
        beta: in (0, 1).
    """

    name = "jsd"

    def __init__(self, beta: float):
        if not 0.0 < beta < 1.0:
            raise ValueError(f"beta must be between 0 and 1 (at its ends it is a KL), got {beta}")
        self.beta = beta

    def _log_mixture(self, log_p: Tensor, log_t: Tensor) -> Tensor:
        return torch.logaddexp(log_p + math.log1p(-self.beta), log_t + math.log(self.beta))

    def total(self, log_p: Tensor, log_t: Tensor) -> Tensor:
        log_m = self._log_mixture(log_p, log_t)
        of_teacher = F.kl_div(log_m, log_t, reduction="sum", log_target=True)
        of_student = F.kl_div(log_m, log_p, reduction="sum", log_target=True)
        return self.beta * of_teacher + (1 - self.beta) * of_student

    def gradient(self, log_p: Tensor, log_t: Tensor) -> Tensor:
        ratio = log_p - self._log_mixture(log_p, log_t)
        p = log_p.exp()
        ratio -= (p * ratio).sum(-1, keepdim=True)
        return ratio.mul_(p).mul_(1 - self.beta)
