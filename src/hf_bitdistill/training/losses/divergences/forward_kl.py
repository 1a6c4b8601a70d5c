"""`KL(teacher || student)`: the student covers what the teacher may say."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .base import Divergence


class ForwardKL(Divergence):
    """`sum_i t_i log(t_i / p_i)`, whose gradient is `p - t`: the one of BitNet Distillation (arXiv 2510.13998, stage 3)."""

    name = "forward_kl"

    def total(self, log_p: Tensor, log_t: Tensor) -> Tensor:
        return F.kl_div(log_p, log_t, reduction="sum", log_target=True)

    def gradient(self, log_p: Tensor, log_t: Tensor) -> Tensor:
        return log_p.exp().sub_(log_t.exp())
