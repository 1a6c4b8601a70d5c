"""Where the teacher's next-token scores come from, a few of the selected tokens at a time."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class TopLogits(NamedTuple):
    """A teacher's distributions by their most likely outcomes: what is left of them is one outcome more, the tail.

    Attributes:
        ids: `[N, k]` int64, different ones in a row.
        scores: `[N, k]` floating, their logits at the temperature of the loss, up to a constant.
        tail: `[N]` floating, the logarithm of the sum of `exp(score)` of all others; `None` if there are no others.
    """

    ids: Tensor
    scores: Tensor
    tail: Tensor | None


class TeacherScores:
    """The teacher's scores of the selected tokens, at the temperature of the loss."""

    def begin(self, rows: slice) -> None:
        """What comes next is asked of these rows alone."""

    def end(self) -> None:
        """Nothing more is asked for now."""

    def scores(self, rows: slice, dtype: torch.dtype) -> Tensor:
        """`[n, outcomes]`."""
        raise NotImplementedError

    def outcomes(self, log_p: Tensor, rows: slice) -> Tensor:
        """The student's log-probabilities `[n, V]` of the teacher's outcomes."""
        return log_p

    def spread(self, gradient: Tensor, log_p: Tensor, outcomes: Tensor, rows: slice) -> Tensor:
        """A gradient with respect to the scores of the outcomes as one with respect to those of the tokens, `[n, V]`."""
        return gradient


class WholeTeacher(TeacherScores):
    """The teacher's logits of every column.

    Args:
        logits: `[tokens, V]`.
        positions: `[N]` int64, the selected ones.
        temperature: of the loss.
        width: leading columns that count.
    """

    def __init__(self, logits: Tensor, positions: Tensor, temperature: float, width: int):
        self.logits, self.positions, self.temperature, self.width = logits, positions, temperature, width

    def scores(self, rows: slice, dtype: torch.dtype) -> Tensor:
        return self.logits[self.positions[rows], : self.width].to(dtype) / self.temperature


class TopTeacher(TeacherScores):
    """The teacher's most likely outcomes, and the tail as one more: both models' probabilities of it are compared."""

    def __init__(self, top: TopLogits):
        self.top = TopLogits(top.ids.detach(), top.scores.detach(), None if top.tail is None else top.tail.detach())

    def scores(self, rows: slice, dtype: torch.dtype) -> Tensor:
        scores = self.top.scores[rows]
        if self.top.tail is not None:
            scores = torch.cat([scores, self.top.tail[rows, None]], dim=-1)
        return scores.to(dtype)

    def outcomes(self, log_p: Tensor, rows: slice) -> Tensor:
        ids = self.top.ids[rows]
        top = log_p.gather(-1, ids)
        if self.top.tail is None:
            return top
        # (Not 1 minus their sum, of which little would be left.)
        return torch.cat([top, log_p.scatter(-1, ids, float("-inf")).logsumexp(-1, keepdim=True)], dim=-1)

    def spread(self, gradient: Tensor, log_p: Tensor, outcomes: Tensor, rows: slice) -> Tensor:
        ids = self.top.ids[rows]
        if self.top.tail is None:
            return torch.zeros_like(log_p).scatter_(-1, ids, gradient)
        # What falls to the tail goes to its tokens by their shares of it.
        spread = (log_p - outcomes[:, -1:]).exp_().mul_(gradient[:, -1:])
        return spread.scatter_(-1, ids, gradient[:, :-1])
