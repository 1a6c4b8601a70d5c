"""Cross entropy on the labels."""

from __future__ import annotations

from .base import LossTerm, Progress


class CrossEntropyTerm(LossTerm):
    name = "ce"
    label = "cross entropy"
    unit = "nats a token"
    order = 0
    reads_logits = False
    weight_option = "ce_loss_weight"
    settings = ("ce_loss_weight",)
    token_sum = "cross_entropy"

    @classmethod
    def is_on(cls, args) -> bool:
        return True

    def is_computed(self, progress: Progress) -> bool:
        # Also with weight 0: it is logged, and costs little beside the logits.
        return True
