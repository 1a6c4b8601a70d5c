"""What a term of the loss is, and what the trainer gives it to compute with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from torch import Tensor, nn

from ...teacher.teacher_scores import TopLogits
from ..token_losses import TokenLossSums


if TYPE_CHECKING:
    from ...config import DistillationConfig

Count = Literal["labels", "tokens"]


class Progress(NamedTuple):
    """How far a training is. `max_steps` is 0 where there is none."""

    step: int = 0
    max_steps: int = 0


class TermSums(NamedTuple):
    """The value of a term on a micro-batch, before its division by what is in the whole batch.

    Attributes:
        total: scalar.
        count: what it is divided by: labels, or tokens that take part, of the accumulated batch. `None`: by nothing.
        each: summands a label or token.
        divisor: a further, constant divisor.
        weight: of the term, if it is told with the value and not by the options.
    """

    total: Tensor
    count: Count | None  # type: ignore[assignment]  # the tuple's method of this name is not used
    each: int = 1
    divisor: int = 1
    weight: float | None = None

    def mean(self, counts: Mapping[Count, Tensor]) -> Tensor:
        """The term's share of the mean over the whole batch."""
        if self.count is None:
            return self.total
        count = counts[self.count]
        mean = self.total / (count if self.each == 1 else count * self.each)
        return mean if self.divisor == 1 else mean / self.divisor


@dataclass
class Forwards:
    """What the two models computed on a micro-batch.

    Attributes:
        args: options of the training.
        inputs: the batch, prepared.
        targets: `[B, T']` or `[B]`, aligned with the logits.
        mask: `[B, T]` bool, the tokens that take part.
        documents: `[B, T]` of a batch that is packed or padded on the left.
        student: unwrapped.
        outputs: of the student's forward.
        token_sums: cross entropy and divergence of the logits. They are of the same softmaxes, and give one gradient together.
        logits: of the student, `[B, T', V]` or `[B, C]`; `None` if no term reads them.
        hidden: of the student, after every layer; empty if no term wants them.
        teacher_logits: likewise, or of its most likely tokens.
        teacher_hidden: likewise.
    """

    args: DistillationConfig
    inputs: Mapping[str, Any]
    targets: Tensor
    mask: Tensor
    documents: Tensor | None
    student: nn.Module
    outputs: Any
    token_sums: TokenLossSums
    logits: Tensor | None = None
    hidden: Sequence[Tensor] = ()
    teacher_logits: Tensor | TopLogits | None = None
    teacher_hidden: Sequence[Tensor] = ()


class LossTerm:
    """A term of the loss: a module of this package each, with nothing about it elsewhere but its options in `DistillationConfig`.

    Attributes:
        name: it is logged as `loss_` and this.
        label: how figures call it.
        unit: what the axis of a figure says.
        order: terms are added in this order.
        weight_option: the option that is its weight, and with 0 turns it off; `None` if it is told with the value.
        needs_teacher: it compares the student with a teacher.
        reads_teacher_logits: the teacher's output layer is computed for it.
        can_be_cached: what it reads of the teacher may come from a cache (`DistillationConfig.teacher_cache`).
        reads_mask: it reads which tokens take part.
        reads_logits: it reads `Forwards.logits` (or those of the teacher), for which they have to exist as a whole.
        token_sum: the field of [`TokenLossSums`] that it is the value of.
        settings: options that a model card shows.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    unit: ClassVar[str]
    order: ClassVar[int]
    weight_option: ClassVar[str | None] = None
    needs_teacher: ClassVar[bool] = False
    reads_teacher_logits: ClassVar[bool] = False
    can_be_cached: ClassVar[bool] = False
    reads_mask: ClassVar[bool] = False
    reads_logits: ClassVar[bool] = True
    token_sum: ClassVar[str | None] = None
    settings: ClassVar[tuple[str, ...]] = ()

    def __init__(self, args: DistillationConfig):
        self.args = args

    @property
    def logged(self) -> str:
        return f"loss_{self.name}"

    @classmethod
    def is_on(cls, args: DistillationConfig) -> bool:
        """Whether the options ask for it."""
        return cls.weight_option is None or bool(getattr(args, cls.weight_option))

    def check(self, student: nn.Module, teacher: nn.Module | None, args: DistillationConfig) -> None:
        """Look at both models (unwrapped) before any training.

        Raises:
            ValueError: they do not go together under this term.
        """

    def weight(self, progress: Progress) -> float:
        """Its weight in the next step; 0: it is not computed there."""
        return getattr(self.args, self.weight_option or "")

    def is_computed(self, progress: Progress) -> bool:
        """Whether the next step computes it."""
        return bool(self.weight(progress))

    def wants_hidden(self, progress: Progress) -> bool:
        """Whether the next step needs the hidden states of both models."""
        return False

    def watch_teacher(self) -> AbstractContextManager | None:
        """Entered around the teacher's forward; `None` if there is nothing to watch."""
        return None

    def watch_student(self, model: nn.Module) -> AbstractContextManager:
        """Entered around the student's (wrapped) forward."""
        return nullcontext()

    def watched_teacher(self) -> list[tuple[str, Tensor]]:
        """What was seen of the teacher, for the search for numbers that are not finite; it is forgotten."""
        return []

    def sums(self, forwards: Forwards) -> TermSums | None:
        """Its value on a micro-batch; `None` if there is none."""
        if self.token_sum is None:
            raise NotImplementedError
        return TermSums(getattr(forwards.token_sums, self.token_sum), "labels")

    def facts(self) -> list[tuple[str, Any]]:
        """What a model card says besides the settings."""
        return []
