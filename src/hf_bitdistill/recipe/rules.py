"""When the recipe goes on and when it goes back: decided by pairs of models on held-out training rows, never by the evaluation split."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .measure import Difference, Measured


@dataclass(frozen=True)
class Try:
    """A student on the held-out rows, and the effort it took.

    Attributes:
        effort: steps a window, or steps of distillation (0: before it).
    """

    effort: int
    measured: Measured


def gap(student: Measured, teacher: Measured) -> dict[str, Any]:
    """What is missing to the teacher, with standard errors: loss (nats), accuracy, agreement of first choices."""
    return {
        "loss": asdict(student.loss_over(teacher)),
        "accuracy": asdict(student.accuracy_over(teacher)),
        "agreement": student.agreement(teacher),
    }


def _is_sure(difference: Difference) -> bool:
    return difference.value > difference.stderr


def goes_on(tried: Sequence[Try], teacher: Measured) -> tuple[bool, str]:
    """Whether more effort is worth trying, and why.

    It is while a gap to the teacher is left and the last try closed it, each by more than one standard error.
    """
    last = tried[-1].measured
    left = last.loss_over(teacher)
    if not _is_sure(left):
        return False, f"no gap is left that can be told from none ({left.value:.3f} ± {left.stderr:.3f} nats)"
    if len(tried) == 1:
        return True, f"{left.value:.3f} ± {left.stderr:.3f} nats are missing"
    closed = tried[-2].measured.loss_over(last)
    text = f"the last step closed {closed.value:.3f} ± {closed.stderr:.3f} nats of the gap"
    return _is_sure(closed), text


def is_no_worse(after: Measured, before: Measured) -> tuple[bool, str]:
    """Whether a student is kept that was trained further: its accuracy decides where it differs by more than one standard error, elsewhere
    its loss, which is less noisy."""
    accuracy, loss = after.accuracy_over(before), after.loss_over(before)
    kept = accuracy.value > 0 if abs(accuracy.value) > accuracy.stderr else loss.value <= 0
    text = f"accuracy {100 * accuracy.value:+.1f} ± {100 * accuracy.stderr:.1f} points, loss {loss.value:+.3f} ± {loss.stderr:.3f}"
    return kept, text


def best_rate(tried: Mapping[float, Measured | None]) -> float:
    """The learning rate with the lowest loss: it is less noisy than the accuracy. `None` is one at which a training did not stay finite."""
    losses = {rate: measured.loss for rate, measured in tried.items() if measured is not None}
    return min(losses, key=losses.__getitem__)


# From the edge of a sweep to the next learning rate.
_RATE_FACTOR = 4.0


def rate_beyond(tried: Mapping[float, Measured | None]) -> float | None:
    """The learning rate on the other side of the best one, where that is the highest or the lowest of those tried; `None` where it has
    neighbours on both sides."""
    best = best_rate(tried)
    if best == max(tried):
        return best * _RATE_FACTOR
    return best / _RATE_FACTOR if best == min(tried) else None


def outlook(tried: Sequence[Try], teacher: Measured) -> dict[str, Any] | None:
    """What twice the effort would probably close, if the gap goes on to be a power of the effort as between the last two tries; `None`
    where there are no two with an effort."""
    known = [each for each in tried if each.effort]
    if len(known) < 2 or known[-1].effort <= known[-2].effort:
        return None
    before, last = known[-2:]
    gaps = [each.measured.loss_over(teacher).value for each in (before, last)]
    closed = before.measured.loss_over(last.measured)
    if gaps[0] <= 0 or gaps[1] <= 0:
        return {"left": gaps[1], "closes": 0.0, "stderr": closed.stderr, "effort": 2 * last.effort}
    doublings = math.log2(last.effort / before.effort)
    share = min(gaps[1] / gaps[0], 1.0) ** (1 / doublings)
    return {
        "left": gaps[1],
        "closes": gaps[1] * (1 - share),
        "stderr": closed.stderr * gaps[1] / gaps[0] / doublings,
        "effort": 2 * last.effort,
    }
