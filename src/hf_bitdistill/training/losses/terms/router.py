"""The load-balancing loss of a mixture of experts, as its model would add it."""

from __future__ import annotations

from ..router_loss import router_loss
from .base import Forwards, LossTerm, Progress, TermSums


class RouterTerm(LossTerm):
    """[`router_loss`], with the model's own coefficient. Models without one, or that do not ask for it, have none."""

    name = "router"
    label = "router (unweighted)"
    unit = "load-balancing loss"
    order = 40
    reads_logits = False

    def is_computed(self, progress: Progress) -> bool:
        return True

    def sums(self, forwards: Forwards) -> TermSums | None:
        found = router_loss(forwards.outputs, forwards.student)
        # Not divided by anything: so does the model's own loss.
        return None if found is None else TermSums(found[0], None, weight=found[1])
