"""The windows of a warm start, one after another: what each reads, how it is trained, what is kept between them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from .. import processes
from ..distillation.layout import BatchReader
from ..layers import BitLinear
from .checkpoint import read_checkpoint, write_checkpoint
from .config import WarmStartConfig
from .decoder import CallRecorder, LayerCall
from .hidden_states import HiddenStates, Slot
from .relaxation import RelaxedBitLinear
from .report import WarmStartReport, WindowReport
from .residents import Residents
from .sharing import add_up, own_rows, real_tokens, shape_of


# Batches on which a window's error is measured before and after.
_MEASURED_BATCHES = 4


def _token_sizes(hidden: Tensor) -> Tensor:
    """Root mean square of each token, `[..., d]` -> `[..., 1]`."""
    return hidden.square().mean(dim=-1, keepdim=True).sqrt()


class _Float32Copies:
    """What an optimiser trains in place of 16-bit parameters: a step of 1e-3 near 1 is less than half the distance of two numbers
    of bfloat16, which would round it away. Wider parameters stand for themselves."""

    def __init__(self, parameters: list[nn.Parameter]):
        self.parameters = parameters
        self.copies = [nn.Parameter(p.detach().float()) if p.dtype.itemsize == 2 else p for p in parameters]
        self._pairs = [(p, copy) for p, copy in zip(parameters, self.copies, strict=True) if p is not copy]

    def take_gradients(self) -> None:
        for parameter, copy in self._pairs:
            copy.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None

    @torch.no_grad()
    def write_back(self) -> None:
        for parameter, copy in self._pairs:
            parameter.copy_(copy)


@dataclass
class _Batch:
    """This process's rows of a batch: calls of all layers, and hidden states before the current window and, as target, after it."""

    calls: list[LayerCall]
    mask: Tensor | None
    student: Slot
    teacher: Slot
    target: Slot
    share: float
    """Of the tokens of the whole batch, in this process."""


class Run:
    """One warm start: the state between windows.

    Args:
        places: of the student's and of the teacher's layers.
        states: holds hidden states.
        progress: show bars.
        on_step, checkpoint, say: see [`warm_start`].
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel,
        places: tuple[Residents, Residents],
        states: HiddenStates,
        config: WarmStartConfig,
        progress: bool,
        on_step: Callable[[int, int, float], None] | None,
        checkpoint: Path | None,
        say: Callable[[str], None] | None,
    ):
        self.student, self.teacher, self.states, self.config = student, teacher, states, config
        self.progress, self.on_step, self.checkpoint, self.say = progress, on_step, checkpoint, say
        self.student_place, self.teacher_place = places
        self.student_layers, self.teacher_layers = (place.layers for place in places)
        self.device = self.student_place.device
        self.steps_done = 0
        self.generator = torch.Generator().manual_seed(config.seed)
        # (layer index, name in the layer) -> stand-in
        self.relaxed: dict[tuple[int, str], RelaxedBitLinear] = {}
        # This process's part of each batch; `None`: it has none. And the sizes of the whole batches.
        self.batches: list[_Batch | None] = []
        self.sizes: list[int] = []
        self.report = WarmStartReport(config, 0)
        # The layer behind which the batches' targets are.
        self._target_at: int | None = None

    def _read(self, batches: Sequence[Mapping[str, Any]]) -> None:
        """See how the batches call the layers, and what the first layers read."""
        started = time.perf_counter()
        student_calls, teacher_calls = CallRecorder(self.student), CallRecorder(self.teacher)
        reader = BatchReader({"student": self.student, "teacher": self.teacher})
        before = 0
        with self.student_place.whole(), self.teacher_place.whole():
            for whole in self._bar(batches, "how the layers are called"):
                own = own_rows(whole, before)
                if own is not None:
                    with self._autocast():
                        batch = reader(own, self.device)
                        hidden, calls = teacher_calls.record(batch)
                        student = student_calls.first_input(batch)
                    mask = batch.get("attention_mask")
                    mask = None if mask is None or bool((mask != 0).all()) else mask.bool().cpu()
                tokens, (rows, length) = real_tokens(whole), shape_of(whole)
                before += rows
                self.report.calibration_tokens += tokens
                self.sizes.append(rows * length)
                if own is None:
                    self.batches.append(None)
                    continue
                own_tokens = hidden.shape[0] * hidden.shape[1] if mask is None else int(mask.sum())
                before_window, of_teacher, target = (self.states.slot() for _ in range(3))
                self.batches.append(
                    _Batch(calls, mask, before_window, of_teacher, target, own_tokens / max(tokens, 1))
                )
                before_window.write(student)
                of_teacher.write(hidden)
        self.report.batch_seconds = time.perf_counter() - started

    def _own(self, title: str) -> Iterable[_Batch]:
        return (batch for batch in self._bar(self.batches, title) if batch is not None)

    def _bar(self, items: Sequence[Any], title: str) -> Iterable[Any]:
        from tqdm.auto import tqdm

        return tqdm(items, desc=title, unit="batch", leave=False, disable=not self.progress)

    def __call__(self, batches: Sequence[Mapping[str, Any]]) -> WarmStartReport:
        """All windows, of these batches, or those behind the checkpoint's."""
        processes.together(lambda: self._read(batches), "reading the batches of the warm start")
        started = time.perf_counter()
        done = 0
        windows = self.config.windows(len(self.student_layers))
        finished = self._continue()
        if finished:
            # Before the batches' way through the finished layers, which takes a while.
            if self.on_step is not None:
                self.on_step(self.steps_done, self._all_steps(), self.report.windows[-1].losses[-1])
            if self.say is not None and finished < len(windows):
                self.say(
                    f"warm start: passes {len(batches)} batches through {windows[finished][0]} finished layers again"
                )
        for number, (first, last) in enumerate(windows):
            if first > done and finished < len(windows):
                # (In a run that goes on, layers before its window are folded already.)
                self._leave(done, first, fold=number >= finished)
                done = first
            if number >= finished:
                self._window(first, last)
                self._keep(number + 1)
        self.report.seconds = time.perf_counter() - started
        return self.report

    # ---- Checkpoints ----

    def _identity(self) -> dict[str, Any]:
        return {"config": asdict(self.config), "batches": len(self.batches), "tokens": self.report.calibration_tokens}

    def _keep(self, windows: int) -> None:
        """Write what the next window needs of the ones before, in the first process."""
        checkpoint = self.checkpoint
        if checkpoint is None:
            return
        state = {
            "identity": self._identity(),
            "windows": windows,
            "student": self.student.state_dict(),
            "relaxed": {key: stand_in.own_tensors() for key, stand_in in self.relaxed.items()},
            "generator": self.generator.get_state(),
            "reports": [asdict(window) for window in self.report.windows],
            "trained_tokens": self.report.trained_tokens,
            "steps_done": self.steps_done,
        }
        processes.on_first(lambda: write_checkpoint(checkpoint, state), "writing the checkpoint of the warm start")

    @torch.no_grad()
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
            raise ValueError(f"{self.checkpoint} belongs to a warm start with other options or other text: remove it")
        self.student.load_state_dict(state["student"])
        self.student_place.only(self.student_layers[index] for index, _ in state["relaxed"])
        for (index, name), tensors in state["relaxed"].items():
            layer = self.student_layers[index].get_submodule(name)
            stand_in = self._stand_in(layer, torch.Generator())
            for key, value in stand_in.own_tensors().items():
                value.copy_(tensors[key])
            self.relaxed[index, name] = stand_in
        self.generator.set_state(state["generator"])
        self.report.windows = [WindowReport(**window) for window in state["reports"]]
        self.report.trained_tokens, self.steps_done = state["trained_tokens"], state["steps_done"]
        return state["windows"]

    # ---- Hidden states ----

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bf16)

    def _forward(self, layers: nn.ModuleList, hidden: Tensor, batch: _Batch, first: int, last: int) -> Tensor:
        hidden = hidden.to(self.device)
        with self._autocast():
            for index in range(first, last):
                hidden = batch.calls[index](layers[index], hidden)
        return hidden

    @torch.no_grad()
    def _through(self, layers: nn.ModuleList, source: Slot, to: Slot, batch: _Batch, first: int, last: int) -> None:
        to.write(self._forward(layers, source.read(), batch, first, last))

    def _leave(self, first: int, last: int, fold: bool) -> None:
        """Make layers final and move the inputs on behind them."""
        if fold:
            self._fold(last)
        started = time.perf_counter()
        # Where windows do not overlap, the target of the last one is what the next begins with.
        is_target = self._target_at == last
        if not is_target:
            self.teacher_place.only(self.teacher_layers[first:last])
        of_student = self.config.window_inputs == "student"
        if of_student:
            self.student_place.only(self.student_layers[first:last])
        for batch in self._own(f"inputs of layer {last}"):
            if is_target:
                batch.teacher, batch.target = batch.target, batch.teacher
            else:
                self._through(self.teacher_layers, batch.teacher, batch.teacher, batch, first, last)
            if of_student:
                self._through(self.student_layers, batch.student, batch.student, batch, first, last)
            else:
                batch.student = batch.teacher
        self.teacher_place.only()
        self.report.batch_seconds += time.perf_counter() - started

    # ---- Stand-ins ----

    def _stand_in(self, layer: BitLinear, generator: torch.Generator) -> RelaxedBitLinear:
        config = self.config
        stand_in = RelaxedBitLinear(layer, config.rank, config.factor_group_size, config.start, generator)
        stand_in.recompute = not self.student_place.all_there
        return stand_in

    def _relax(self, first: int, last: int) -> list[RelaxedBitLinear]:
        stand_ins = []
        for index in range(first, last):
            layer = self.student_layers[index]
            for name, module in list(layer.named_modules()):
                if isinstance(module, BitLinear) and (index, name) not in self.relaxed:
                    self.relaxed[index, name] = self._stand_in(module, self.generator)
            for (owner, name), stand_in in self.relaxed.items():
                if owner == index:
                    layer.set_submodule(name, stand_in)
                    stand_ins.append(stand_in)
        return stand_ins

    def restore(self) -> None:
        """Put the ternary layers back in their places."""
        for (index, name), stand_in in self.relaxed.items():
            self.student_layers[index].set_submodule(name, stand_in.layer)

    def _fold(self, last: int) -> None:
        """Fold the stand-ins of layers below `last` for good."""
        self.restore()
        for key in [key for key in self.relaxed if key[0] < last]:
            self.relaxed.pop(key).fold()

    # ---- A window ----

    def _loss(self, batch: _Batch, first: int, last: int, unit: float) -> Tensor:
        """This process's part of the loss of a whole batch."""
        hidden = self._forward(self.student_layers, batch.student.read(), batch, first, last)
        target = batch.target.read().to(self.device)
        if batch.mask is not None:
            mask = batch.mask.to(self.device)
            hidden, target = hidden[mask], target[mask]
        hidden, target = hidden.float(), target.float()
        units = _token_sizes(target).clamp(min=unit) if self.config.loss_unit == "token" else unit
        loss = F.huber_loss(hidden / units, target / units, delta=self.config.huber_delta)
        # (A mean over no token is not a number.)
        return loss if batch.share == 1 else loss * batch.share if batch.share else 0.0 * hidden.sum()

    @torch.no_grad()
    def _error(self, first: int, last: int, unit: float) -> float:
        measured = self.batches[:_MEASURED_BATCHES]
        own = sum(self._loss(batch, first, last, unit).item() for batch in measured if batch is not None)
        return sum(processes.gather(own)) / len(measured)

    def _window(self, first: int, last: int) -> None:
        started = time.perf_counter()
        self.teacher_place.only(self.teacher_layers[first:last])
        for batch in self._own(f"targets of layers {first} to {last - 1}"):
            self._through(self.teacher_layers, batch.teacher, batch.target, batch, first, last)
        self.teacher_place.only()
        self._target_at = last
        self.report.batch_seconds += time.perf_counter() - started
        self.student_place.only(self.student_layers[first:last])
        unit = self._unit()
        before = self._error(first, last, unit)
        stand_ins = self._relax(first, last)
        losses = self._train(stand_ins, first, last, unit)
        # Layers that the next window trains on are folded only to be measured, and go on from their stand-ins.
        self.restore()
        for stand_in in stand_ins:
            stand_in.fold()
        after = self._error(first, last, unit)
        seconds = time.perf_counter() - started
        self.report.windows.append(WindowReport(first, last - 1, before, after, losses, seconds))

    @torch.no_grad()
    def _unit(self) -> float:
        """The median over tokens of the root mean square of the target. A median, because a few tokens (the first of a
        text, above all) carry values hundreds of times larger."""
        values = [torch.zeros(0)]
        for batch in self.batches[: 8 * _MEASURED_BATCHES]:
            if batch is not None:
                sizes = _token_sizes(batch.target.read().float()).squeeze(-1)
                values.append(sizes[batch.mask] if batch.mask is not None else sizes.flatten())
        return max(torch.cat(processes.gather(torch.cat(values))).median().item(), 1e-6)

    def _train(self, stand_ins: list[RelaxedBitLinear], first: int, last: int, unit: float) -> list[float]:
        config = self.config
        vectors = _Float32Copies(self._vectors(first, last) if config.train_norms else [])
        groups = [
            {"params": [p for s in stand_ins for p in s.updates()], "lr": config.learning_rate},
            {"params": [p for s in stand_ins for p in s.factors()], "lr": config.factor_learning_rate},
            {"params": vectors.copies, "lr": config.norm_learning_rate},
        ]
        trained = [p for group in groups for p in cast("list[nn.Parameter]", group["params"])]
        for stand_in in stand_ins:
            stand_in.final_sharpness = config.final_sharpness
        losses: list[float] = []
        order: list[int] = []
        with ExitStack() as stack:
            for parameter in (*trained, *vectors.parameters):
                stack.callback(parameter.requires_grad_, False)
                parameter.requires_grad_(True)
            optimizer = torch.optim.Adam([group for group in groups if group["params"]], betas=(0.9, 0.95))
            rates = [group["lr"] for group in optimizer.param_groups]
            for step in self._steps(first, last):
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * config.rate_share_at(step)
                for stand_in in stand_ins:
                    stand_in.sharpness = config.sharpness_at(step)
                if not order:
                    order = torch.randperm(len(self.batches), generator=self.generator).tolist()
                number = order.pop()
                batch = self.batches[number]
                loss = torch.zeros((), device=self.device)
                if batch is not None:
                    with torch.enable_grad():
                        loss = self._loss(batch, first, last, unit)
                        loss.backward()
                vectors.take_gradients()
                losses.append(add_up(loss, trained).item())
                if losses[-1] != losses[-1] or losses[-1] == float("inf"):
                    raise FloatingPointError(
                        f"the loss of layers {first} to {last - 1} is not finite at step {step}: lower learning_rate"
                    )
                torch.nn.utils.clip_grad_norm_(trained, config.max_grad_norm)
                optimizer.step()
                vectors.write_back()
                optimizer.zero_grad(set_to_none=True)
                self.steps_done += 1
                if self.on_step is not None:
                    self.on_step(self.steps_done, self._all_steps(), losses[-1])
                self.report.trained_tokens += self.sizes[number]
        parts = min(10, len(losses))
        edges = [len(losses) * part // parts for part in range(parts + 1)]
        return [sum(losses[i:j]) / (j - i) for i, j in pairwise(edges)]

    def _all_steps(self) -> int:
        return self.config.steps_per_window * len(self.config.windows(len(self.student_layers)))

    def _steps(self, first: int, last: int) -> Iterable[int]:
        from tqdm.auto import tqdm

        title = f"warm start of layers {first} to {last - 1}"
        return tqdm(range(self.config.steps_per_window), desc=title, unit="step", disable=not self.progress)

    def _vectors(self, first: int, last: int) -> list[nn.Parameter]:
        """Norm weights, SubLNs and biases of the window, each once."""
        own = {id(p) for stand_in in self.relaxed.values() for p in (*stand_in.updates(), *stand_in.factors())}
        vectors = {
            id(parameter): parameter
            for index in range(first, last)
            for parameter in self.student_layers[index].parameters()
            if parameter.ndim == 1 and parameter.is_floating_point() and id(parameter) not in own
        }
        return list(vectors.values())
