"""`warm_start`: blocks of a ternary student learn to compute what the teacher's blocks compute.

The idea is CAT-Q's (arXiv 2606.26650): about a million tokens of any text, a few decoder layers at a time, a softened
ternary function that hardens while it is trained. Nothing is left of it in the student but better latent weights and norms.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..distillation.layout import BatchReader
from ..layers import BitLinear
from ..quantization import fold_ternary, least_squares_start
from ..surgery import SurgeryError, is_student, student_config
from .checkpoint import read_checkpoint, write_checkpoint
from .config import WarmStartConfig
from .decoder import CallRecorder, LayerCall, decoder_layers
from .relaxation import RelaxedBitLinear
from .report import WarmStartReport, WindowReport


# Batches on which a window's error is measured before and after.
_MEASURED_BATCHES = 4


@torch.no_grad()
def least_squares_warm_start(student: PreTrainedModel) -> int:
    """Give every layer of a new student the codes and scales nearest to its weights, see [`least_squares_start`].

    Needs no data and a moment of time: the absmean scale is smaller than the one that fits its own codes best. Nearer weights are
    not always a better model, so measure: before any training stories260K (SubLNs calibrated) has 6.93 nats a token with them
    and 6.56 without.

    Returns:
        Number of layers.

    Raises:
        SurgeryError: `student` is not an online student.
    """
    layers = _online_layers(student)
    for layer in layers:
        options = (layer.weight_granularity, layer.group_size)
        layer.weight.copy_(fold_ternary(*least_squares_start(layer.weight, *options), *options, layer.weight.dtype))
    return len(layers)


def warm_start(
    student: PreTrainedModel,
    teacher_model: PreTrainedModel,
    batches: Iterable[Mapping[str, Any]],
    config: WarmStartConfig | None = None,
    progress: bool = False,
    on_step: Callable[[int, int, float], None] | None = None,
    checkpoint: Path | None = None,
) -> WarmStartReport:
    """Train windows of decoder layers of a ternary student to reproduce the full-precision model's, in place.

    A window of `window_layers` layers slides by `window_stride`. Its layers compute with [`RelaxedBitLinear`]s and are
    trained (Adam, Huber loss) on the teacher's hidden states after the window; layers that the window leaves are folded
    into ordinary latent weights, layers that stay in it go on where they were. The student stays an online student, to be
    trained further, saved or packed. Calibrate its SubLNs first ([`calibrate_sub_norm`]).

    Memory: the weights of one window with Adam's states, and on the CPU the hidden states of all batches three times
    (student, teacher, target) in the model's dtype. The same arguments give the same result.

    Args:
        student: an online student of `teacher_model`; on the device where it is trained.
        teacher_model: its full-precision source, on the same device. Not changed.
        batches: model inputs, each one step: `input_ids` `[B, T]` int64 and optionally `attention_mask` (padding is left
            out of the loss), padded on either side or packed; labels are ignored.
        config: the options.
        progress: show a bar.
        on_step: called after each step with the number of steps done and of all steps, of all windows, and the loss.
        checkpoint: a file that is written after every window; where it is there, the run goes on behind its window and gives the same
            result as one that was not interrupted. It is left there at the end.

    Returns:
        What was measured.

    Raises:
        SurgeryError: `student` is not an online student, or its decoder layers cannot be located.
        ValueError: there are no batches, one does not fit the models, the two models differ in depth, width or attention
            implementation, or the checkpoint is of another warm start.
        FloatingPointError: a window's loss is not finite.
    """
    config = config or WarmStartConfig()
    batches = list(batches)
    if not batches:
        raise ValueError("warm_start needs at least one batch")
    _online_layers(student)
    _check_alike(student, teacher_model)
    run = _Run(student, teacher_model, batches, config, progress, on_step, checkpoint)
    before = {parameter: parameter.requires_grad for parameter in student.parameters()}
    modes = {module: module.training for module in (student, teacher_model)}
    try:
        student.requires_grad_(False).eval()
        teacher_model.eval()
        return run()
    finally:
        run.restore()
        for parameter, value in before.items():
            parameter.requires_grad_(value)
        for module, training in modes.items():
            module.train(training)


def _online_layers(student: PreTrainedModel) -> list[BitLinear]:
    if not is_student(student) or student_config(student).quantization_mode != "online":
        raise SurgeryError(f"{type(student).__name__} is not an online student: a warm start sets latent weights.")
    return [module for module in student.modules() if isinstance(module, BitLinear)]


def _check_alike(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    if is_student(teacher):
        raise ValueError("the teacher of a warm start is the full-precision model, not a BitNet student")
    depths = [len(decoder_layers(model)) for model in (student, teacher)]
    widths = [model.config.get_text_config().hidden_size for model in (student, teacher)]
    if depths[0] != depths[1] or widths[0] != widths[1]:
        raise ValueError(
            f"a warm start copies layer by layer: the student has {depths[0]} layers of width {widths[0]}, the teacher "
            f"{depths[1]} of {widths[1]}"
        )
    attention = [model.config._attn_implementation for model in (student, teacher)]
    if attention[0] != attention[1]:
        raise ValueError(f"student and teacher must use one attention implementation, not {attention}: masks differ")


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
    """Calls of all layers, and hidden states (on the CPU) before the current window and, as target, after it."""

    calls: list[LayerCall]
    mask: Tensor | None
    student: Tensor
    teacher: Tensor
    target: Tensor | None = None


class _Run:
    """One warm start: the state between windows."""

    def __init__(self, student, teacher, batches, config: WarmStartConfig, progress: bool, on_step, checkpoint):
        self.config, self.progress, self.on_step, self.checkpoint = config, progress, on_step, checkpoint
        self.student = student
        self.steps_done = 0
        self.student_layers, self.teacher_layers = decoder_layers(student), decoder_layers(teacher)
        self.device = student.device
        self.generator = torch.Generator().manual_seed(config.seed)
        # (layer index, name in the layer) -> stand-in
        self.relaxed: dict[tuple[int, str], RelaxedBitLinear] = {}
        student_calls, teacher_calls = CallRecorder(student), CallRecorder(teacher)
        reader = BatchReader({"student": student, "teacher": teacher})
        self.batches = []
        tokens = 0
        started = time.perf_counter()
        for batch in batches:
            with self._autocast():
                batch = reader(batch, self.device)
                hidden, calls = teacher_calls.record(batch)
                own, _ = student_calls.record(batch, only_first=True)
            mask = batch.get("attention_mask")
            mask = None if mask is None or bool((mask != 0).all()) else mask.bool().cpu()
            tokens += batch["input_ids"].numel() if mask is None else int(mask.sum())
            self.batches.append(_Batch(calls, mask, own.cpu(), hidden.cpu()))
        self.report = WarmStartReport(config, tokens)
        self.report.batch_seconds = time.perf_counter() - started
        # The layer behind which the batches' targets are.
        self._target_at: int | None = None

    def __call__(self) -> WarmStartReport:
        started = time.perf_counter()
        done = 0
        finished = self._continue()
        if finished and self.on_step is not None:
            # Before the batches' way through the finished windows, which takes a while.
            self.on_step(self.steps_done, self._all_steps(), self.report.windows[-1].losses[-1])
        for number, (first, last) in enumerate(self.config.windows(len(self.student_layers))):
            if first > done:
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
        """Write what the next window needs of the ones before."""
        if self.checkpoint is None:
            return
        write_checkpoint(
            self.checkpoint,
            {
                "identity": self._identity(),
                "windows": windows,
                "student": self.student.state_dict(),
                "relaxed": {key: stand_in.own_tensors() for key, stand_in in self.relaxed.items()},
                "generator": self.generator.get_state(),
                "reports": [asdict(window) for window in self.report.windows],
                "trained_tokens": self.report.trained_tokens,
                "steps_done": self.steps_done,
            },
        )

    @torch.no_grad()
    def _continue(self) -> int:
        """Take up a checkpoint, if there is one. Returns how many windows are done."""
        state = None if self.checkpoint is None else read_checkpoint(self.checkpoint)
        if state is None:
            return 0
        if state["identity"] != self._identity():
            raise ValueError(f"{self.checkpoint} belongs to a warm start with other options or other text: remove it")
        self.student.load_state_dict(state["student"])
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
    def _through(self, layers: nn.ModuleList, hidden: Tensor, batch: _Batch, first: int, last: int) -> Tensor:
        return self._forward(layers, hidden, batch, first, last).cpu()

    def _leave(self, first: int, last: int, fold: bool) -> None:
        """Make layers final and move the inputs on behind them."""
        if fold:
            self._fold(last)
        started = time.perf_counter()
        for batch in self.batches:
            # Where windows do not overlap, the target of the last one is what the next begins with.
            is_target = self._target_at == last
            batch.teacher = (
                batch.target if is_target else self._through(self.teacher_layers, batch.teacher, batch, first, last)
            )
            if self.config.window_inputs == "student":
                batch.student = self._through(self.student_layers, batch.student, batch, first, last)
            else:
                batch.student = batch.teacher
        self.report.batch_seconds += time.perf_counter() - started

    # ---- Stand-ins ----

    def _stand_in(self, layer: BitLinear, generator: torch.Generator) -> RelaxedBitLinear:
        config = self.config
        return RelaxedBitLinear(layer, config.rank, config.factor_group_size, config.start, generator)

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
        hidden = self._forward(self.student_layers, batch.student, batch, first, last)
        target = batch.target.to(self.device)
        if batch.mask is not None:
            mask = batch.mask.to(self.device)
            hidden, target = hidden[mask], target[mask]
        hidden, target = hidden.float(), target.float()
        units = _token_sizes(target).clamp(min=unit) if self.config.loss_unit == "token" else unit
        return F.huber_loss(hidden / units, target / units, delta=self.config.huber_delta)

    @torch.no_grad()
    def _error(self, first: int, last: int, unit: float) -> float:
        measured = self.batches[:_MEASURED_BATCHES]
        return sum(self._loss(batch, first, last, unit).item() for batch in measured) / len(measured)

    def _window(self, first: int, last: int) -> None:
        started = time.perf_counter()
        for batch in self.batches:
            batch.target = self._through(self.teacher_layers, batch.teacher, batch, first, last)
        self._target_at = last
        self.report.batch_seconds += time.perf_counter() - started
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
        values = []
        for batch in self.batches[: 8 * _MEASURED_BATCHES]:
            sizes = _token_sizes(batch.target.float()).squeeze(-1)
            values.append(sizes[batch.mask] if batch.mask is not None else sizes.flatten())
        return max(torch.cat(values).median().item(), 1e-6)

    def _train(self, stand_ins: list[RelaxedBitLinear], first: int, last: int, unit: float) -> list[float]:
        config = self.config
        vectors = _Float32Copies(self._vectors(first, last) if config.train_norms else [])
        groups = [
            {"params": [p for s in stand_ins for p in s.updates()], "lr": config.learning_rate},
            {"params": [p for s in stand_ins for p in s.factors()], "lr": config.factor_learning_rate},
            {"params": vectors.copies, "lr": config.norm_learning_rate},
        ]
        trained = [p for group in groups for p in group["params"]]
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
                batch = self.batches[order.pop()]
                with torch.enable_grad():
                    loss = self._loss(batch, first, last, unit)
                    loss.backward()
                vectors.take_gradients()
                losses.append(loss.item())
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
                self.report.trained_tokens += batch.student.shape[0] * batch.student.shape[1]
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
