"""How the hidden states of all batches get from one window to the next."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ...nn import kernels_while_evaluating
from .hidden_states import Slot
from .residents import Residents
from .window_batches import Batches, WindowBatch


class Propagation:
    """Passes batches through layers. What a layer is needed for decides how long it is on the device.

    Args:
        batches: whose hidden states it moves.
        student, teacher: places of the layers.
        of_student: windows read what the student's own layers before them give, not the teacher's.
        autocast: in which layers compute.

    Attributes:
        seconds: wall time of all passes.
    """

    def __init__(
        self, batches: Batches, student: Residents, teacher: Residents, of_student: bool, autocast: torch.autocast
    ):
        self.batches, self.student, self.teacher = batches, student, teacher
        self.device = student.device
        self.seconds = 0.0
        self._of_student, self._autocast = of_student, autocast
        # The layer behind which the batches' targets are.
        self._target_at: int | None = None

    def forward(self, layers: nn.ModuleList, hidden: Tensor, batch: WindowBatch, first: int, last: int) -> Tensor:
        """What layers `first` to `last - 1` make of hidden states `[B, T, d]`."""
        hidden = hidden.to(self.device)
        with self._autocast:
            for index in range(first, last):
                hidden = batch.calls[index](layers[index], hidden)
        return hidden

    def set_targets(self, first: int, last: int) -> None:
        """What the teacher's layers of a window give for what its layers before have given."""
        with self._timed(), self.teacher.holding(first, last):
            for batch in self.batches.each(f"targets of layers {first} to {last - 1}"):
                self._through(self.teacher, batch.teacher, batch.target, batch, first, last)
        self._target_at = last

    def advance(self, first: int, last: int) -> None:
        """Move the inputs, which are before layer `first`, on behind layers that are final."""
        # Where windows do not overlap, the target of the last one is what the next begins with.
        is_target = self._target_at == last
        with (
            self._timed(),
            self.teacher.holding(*((0, 0) if is_target else (first, last))),
            self.student.holding(*((first, last) if self._of_student else (0, 0))),
            kernels_while_evaluating(nn.ModuleList(self.student.layers[first:last])),
        ):
            for batch in self.batches.each(f"inputs of layer {last}"):
                if is_target:
                    batch.teacher, batch.target = batch.target, batch.teacher
                else:
                    self._through(self.teacher, batch.teacher, batch.teacher, batch, first, last)
                if self._of_student:
                    self._through(self.student, batch.student, batch.student, batch, first, last)
                else:
                    batch.student = batch.teacher

    @torch.no_grad()
    def _through(self, place: Residents, source: Slot, to: Slot, batch: WindowBatch, first: int, last: int) -> None:
        to.write(self.forward(place.layers, source.read(), batch, first, last))

    @contextmanager
    def _timed(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - started
