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

    def gradient(self, scores: Tensor, teacher_scores: Tensor, probabilities: Tensor | None = None) -> Tensor:
        gradient = F.softmax(scores, dim=-1) if probabilities is None else probabilities.clone()
        gradient -= F.softmax(teacher_scores, dim=-1)
        return gradient
