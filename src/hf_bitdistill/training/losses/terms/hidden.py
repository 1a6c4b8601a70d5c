"""What the layers of both models hand on."""

from __future__ import annotations

from typing import Any

from torch import nn

from ...callbacks import falling_share
from ..depths import relative_depth
from ..relations import hidden_state_loss
from .base import Forwards, LossTerm, Progress, TermSums


class HiddenTerm(LossTerm):
    """[`hidden_state_loss`] of every layer of the student, a mean over layers and tokens."""

    name = "hidden"
    label = "hidden states (unweighted)"
    unit = "squared error / squared size"
    order = 30
    reads_logits = False
    weight_option = "hidden_loss_weight"
    needs_teacher = True
    reads_mask = True
    settings = ("hidden_loss_weight", "hidden_loss_share")

    def check(self, student: nn.Module, teacher: nn.Module | None, args) -> None:
        models: tuple[Any, ...] = (student, teacher)
        widths = [model.config.get_text_config().hidden_size for model in models]
        if widths[0] != widths[1]:
            raise ValueError(
                f"the student's hidden states are {widths[0]} wide and the teacher's {widths[1]}: set hidden_loss_weight=0"
            )

    def weight(self, progress: Progress) -> float:
        weight, share = self.args.hidden_loss_weight, self.args.hidden_loss_share
        if share is None or not progress.max_steps:  # a call before any training
            return weight
        return weight * falling_share(progress.step, progress.max_steps, share)

    def wants_hidden(self, progress: Progress) -> bool:
        return self.is_computed(progress)

    def sums(self, forwards: Forwards) -> TermSums:
        mine, theirs = forwards.hidden, forwards.teacher_hidden
        counterparts = [theirs[counterpart(layer, len(mine), len(theirs))] for layer in range(len(mine))]
        return TermSums(hidden_state_loss(counterparts, mine, forwards.mask), "tokens", each=len(mine))


def counterpart(layer: int, depth: int, teacher_depth: int) -> int:
    """The teacher's layer for one of the student's. Behind the last layer of a model stands its final norm: last goes with last, and no other
    layer does, where there is another."""
    if layer == depth - 1:
        return teacher_depth - 1
    return min(relative_depth(layer, depth, teacher_depth), max(teacher_depth - 2, 0))
