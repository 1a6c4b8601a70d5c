"""What the chunked token losses need of a divergence."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor


class Divergence(ABC):
    """A divergence of two distributions over the same outcomes, with its gradient.

    The gradient is written down, because the chunked losses compute every softmax again in the backward pass instead of keeping it.
    """

    name: ClassVar[str]

    @abstractmethod
    def total(self, log_p: Tensor, log_t: Tensor) -> Tensor:
        """The sum over rows.

        Args:
            log_p: `[N, V]` log-probabilities of the student.
            log_t: `[N, V]` of the teacher.
        """

    @abstractmethod
    def gradient(self, scores: Tensor, teacher_scores: Tensor, probabilities: Tensor | None = None) -> Tensor:
        """The gradient of [`total`] with respect to `scores`, a new tensor.

        Args:
            scores: `[N, V]` of the student; their softmax is its distribution.
            teacher_scores: `[N, V]`.
            probabilities: `softmax(scores)` where it is known; left as it is.
        """
