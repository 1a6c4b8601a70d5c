"""The batches of a warm start: how each calls the layers, and where its hidden states wait."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..batch_layout import BatchReader
from .decoder_layers import CallRecorder, LayerCall
from .hidden_states import HiddenStates, Slot
from .residents import Residents
from .shared_rows import own_rows, real_tokens, shape_of


def bar(items: Sequence[Any], title: str, shown: bool, unit: str = "batch") -> Iterable[Any]:
    """The items, with a bar that is gone afterwards; one of steps stays."""
    from tqdm.auto import tqdm

    return tqdm(items, desc=title, unit=unit, leave=unit == "step", disable=not shown)


@dataclass
class WindowBatch:
    """This process's rows of a batch: calls of all layers, and hidden states before the current window and, as target, after it."""

    calls: list[LayerCall]
    mask: Tensor | None
    student: Slot
    teacher: Slot
    target: Slot
    share: float
    """Of the tokens of the whole batch, in this process."""


@dataclass
class Batches:
    """All batches of a warm start.

    Attributes:
        own: this process's part of each; `None`: it has none.
        sizes: places for tokens in each whole batch.
        tokens: in all whole batches, without padding.
        progress: show bars.
    """

    progress: bool
    own: list[WindowBatch | None] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    tokens: int = 0

    def __len__(self) -> int:
        return len(self.own)

    def first(self, count: int) -> Iterator[WindowBatch]:
        """What this process has of the first batches."""
        return (batch for batch in self.own[:count] if batch is not None)

    def each(self, title: str) -> Iterator[WindowBatch]:
        """What this process has, with a bar."""
        return (batch for batch in bar(self.own, title, self.progress) if batch is not None)


def read_batches(
    batches: Sequence[Mapping[str, Any]],
    student: tuple[PreTrainedModel, Residents],
    teacher: tuple[PreTrainedModel, Residents],
    states: HiddenStates,
    autocast: torch.autocast,
    progress: bool,
) -> Batches:
    """See how the batches call the layers, and what the first layers read.

    Args:
        batches: model inputs, see [`warm_start`].
        student, teacher: each model, and the place of its layers.
        states: holds hidden states.
        autocast: in which the models are called.
        progress: show bars, of this and of all later passes.
    """
    device = student[1].device
    student_calls, teacher_calls = CallRecorder(student[0]), CallRecorder(teacher[0])
    reader = BatchReader({"student": student[0], "teacher": teacher[0]})
    found, before = Batches(progress), 0
    with student[1].whole(), teacher[1].whole():
        for whole in bar(batches, "how the layers are called", progress):
            own = own_rows(whole, before)
            if own is not None:
                with autocast:
                    batch = reader(own, device)
                    hidden, calls = teacher_calls.record(batch)
                    of_student = student_calls.first_input(batch)
                mask = batch.get("attention_mask")
                mask = None if mask is None or bool((mask != 0).all()) else mask.bool().cpu()
            tokens, (rows, length) = real_tokens(whole), shape_of(whole)
            before += rows
            found.tokens += tokens
            found.sizes.append(rows * length)
            if own is None:
                found.own.append(None)
                continue
            own_tokens = hidden.shape[0] * hidden.shape[1] if mask is None else int(mask.sum())
            before_window, of_teacher, target = (states.slot() for _ in range(3))
            found.own.append(WindowBatch(calls, mask, before_window, of_teacher, target, own_tokens / max(tokens, 1)))
            before_window.write(of_student)
            of_teacher.write(hidden)
    return found
