"""The windows of a warm start, one after another, and what is kept between them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ...machine import processes
from ...modeling.surgery import student_config
from .config import WarmStartConfig
from .hidden_states import HiddenStates
from .propagation import Propagation
from .residents import Residents
from .shared_rows import digest_of_state, digest_of_text
from .stand_ins import StandIns
from .window import Window
from .window_batches import read_batches
from .window_checkpoint import read_checkpoint, write_checkpoint
from .window_report import WarmStartReport, WindowReport


class Run:
    """One warm start: the state between windows.

    Args:
        batches: model inputs, see [`warm_start`]. They are read at once.
        places: of the student's and of the teacher's layers.
        states: holds hidden states.
        progress: show bars.
        on_step, checkpoint, say: see [`warm_start`].
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel,
        batches: Sequence[Mapping[str, Any]],
        places: tuple[Residents, Residents],
        states: HiddenStates,
        config: WarmStartConfig,
        progress: bool,
        on_step: Callable[[int, int, float], None] | None,
        checkpoint: Path | None,
        say: Callable[[str], None] | None,
    ):
        self.student, self.config, self.on_step, self.checkpoint, self.say = student, config, on_step, checkpoint, say
        self.place = places[0]
        self.generator = torch.Generator().manual_seed(config.seed)
        self.stand_ins = StandIns(self.place.layers, config, self.generator, recompute=not self.place.all_there)
        self.windows = config.windows(len(self.place.layers))
        self.steps_done = 0
        self._made_of: dict[str, Any] = {}
        if checkpoint is not None:
            # (Of the student how it was made, not its values: where it is made again, its SubLNs are calibrated a last bit apart.)
            self._made_of = {
                "text": digest_of_text(batches),
                "teacher": digest_of_state(teacher),
                "student": student_config(student).to_dict(),
            }
        autocast = torch.autocast(self.place.device.type, torch.bfloat16, enabled=config.bf16)
        started = time.perf_counter()
        self.batches = processes.together(
            lambda: read_batches(batches, (student, self.place), (teacher, places[1]), states, autocast, progress),
            "reading the batches of the warm start",
        )
        self.report = WarmStartReport(config, self.batches.tokens, batch_seconds=time.perf_counter() - started)
        self.propagation = Propagation(self.batches, *places, config.window_inputs == "student", autocast)

    def __call__(self) -> WarmStartReport:
        """All windows, or those behind the checkpoint's."""
        started = time.perf_counter()
        done, finished = 0, self._continue()
        if finished:
            self._tell_how_far(finished)
        for number, (first, last) in enumerate(self.windows):
            if first > done and finished < len(self.windows):
                if number >= finished:
                    self.stand_ins.leave(first)
                self.propagation.advance(done, first)
                done = first
            if number >= finished:
                window = Window(first, last, self.propagation, self.stand_ins, self.config, self.generator)
                self.report.windows.append(window.fit(self._stepped))
                self._keep(number + 1)
        self.report.seconds = time.perf_counter() - started
        self.report.batch_seconds += self.propagation.seconds
        return self.report

    def _stepped(self, tokens: int, loss: float) -> None:
        self.steps_done += 1
        self._tell_step(loss)
        self.report.trained_tokens += tokens

    def _tell_step(self, loss: float) -> None:
        if self.on_step is not None:
            self.on_step(self.steps_done, self.config.steps_per_window * len(self.windows), loss)

    def _tell_how_far(self, finished: int) -> None:
        """Before the batches' way through the finished layers, which takes a while."""
        self._tell_step(self.report.windows[-1].losses[-1])
        if self.say is not None and finished < len(self.windows):
            layers = self.windows[finished][0]
            self.say(f"warm start: passes {len(self.batches)} batches through {layers} finished layers again")

    # ---- Checkpoints ----

    def _identity(self) -> dict[str, Any]:
        return {"config": asdict(self.config), **self._made_of}

    def _keep(self, windows: int) -> None:
        """Write what the next window needs of the ones before, in the first process."""
        checkpoint = self.checkpoint
        if checkpoint is None:
            return
        state = {
            "identity": self._identity(),
            "windows": windows,
            "student": self.student.state_dict(),
            "relaxed": self.stand_ins.state(),
            "generator": self.generator.get_state(),
            "reports": [asdict(window) for window in self.report.windows],
            "trained_tokens": self.report.trained_tokens,
            "steps_done": self.steps_done,
        }
        processes.on_first(lambda: write_checkpoint(checkpoint, state), "writing the checkpoint of the warm start")

    def _continue(self) -> int:
        """Take up a checkpoint, if there is one. Returns how many windows are done."""
        checkpoint = self.checkpoint
        if checkpoint is None:
            return 0
        state = processes.together(lambda: read_checkpoint(checkpoint), "reading the checkpoint of the warm start")
        processes.agree(
            f"how far the checkpoint {checkpoint.name} of the warm start is",
            None if state is None else f"step {state['steps_done']}",
            "It must be one file for all: give an output folder that all machines share, or copy the file to each.",
        )
        if state is None:
            return 0
        if state["identity"] != self._identity():
            raise ValueError(
                f"{self.checkpoint} belongs to a warm start of another model, with other options or other text: remove it"
            )
        self.student.load_state_dict(state["student"])
        # (Stand-ins are made where their layers are.)
        self.place.only(self.place.layers[index] for index, _ in state["relaxed"])
        self.stand_ins.load(state["relaxed"])
        self.place.only()
        self.generator.set_state(state["generator"])
        self.report.windows = [WindowReport(**window) for window in state["reports"]]
        self.report.trained_tokens, self.steps_done = state["trained_tokens"], state["steps_done"]
        return state["windows"]
