"""Divergence from the teacher's softened next-token distributions."""

from __future__ import annotations

from .base import LossTerm


class LogitsTerm(LossTerm):
    """`tau^2 * D(softmax(t / tau), softmax(s / tau))` a label; D is `DistillationConfig.logits_divergence`."""

    name = "logits"
    label = "logits (unweighted)"
    unit = "nats a token, times T squared"
    order = 10
    reads_logits = False
    weight_option = "logits_loss_weight"
    needs_teacher = True
    reads_teacher_logits = True
    can_be_cached = True
    settings = ("temperature", "logits_loss_weight", "logits_divergence")
    token_sum = "kl"

    def facts(self) -> list[tuple[str, float]]:
        return [("jsd_beta", self.args.jsd_beta)] if self.args.logits_divergence == "jsd" else []
