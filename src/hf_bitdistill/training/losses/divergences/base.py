"""What the chunked token losses need of a divergence."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor


class Divergence(ABC):
    """A divergence of two distributions over the same outcomes, with its gradient.

    The gradient is written down, because the chunked losses keep no softmax for autograd.
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
    def gradient(self, log_p: Tensor, log_t: Tensor) -> Tensor:
        """The gradient of [`total`] with respect to scores of which `log_p` is the log-softmax, a new tensor.

        Args:
            log_p, log_t: as in [`total`]; left as they are.
        """
