"""`warm_start`: blocks of a ternary student learn to compute what the teacher's blocks compute.

The idea is CAT-Q's (arXiv 2606.26650): about a million tokens of any text, a few decoder layers at a time, a softened
ternary function that hardens while it is trained. Nothing is left of it in the student but better latent weights and norms.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ..._compat import attention_implementation
from ...machine import processes
from ...machine.freed_memory import freed_memory_kept
from ...modeling.surgery import SurgeryError, is_student, student_config
from ...nn import BitLinear
from ...quantization import fold_ternary, least_squares_start
from .config import WarmStartConfig
from .decoder_layers import decoder_layers
from .hidden_states import HiddenStates, Where, hidden_states_folder
from .residents import Residents
from .shared_rows import check_alike, shape_of
from .window_report import WarmStartReport
from .window_run import Run


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
    *,
    device: torch.device | str | None = None,
    hidden_states: Where = "auto",
    scratch: Path | None = None,
    say: Callable[[str], None] | None = None,
) -> WarmStartReport:
    """Train windows of decoder layers of a ternary student to reproduce the full-precision model's, in place.

    A window of `window_layers` layers slides by `window_stride`. Its layers compute with [`RelaxedBitLinear`]s and are
    trained (Adam, Huber loss) on the teacher's hidden states after the window; layers that the window leaves are folded
    into ordinary latent weights, layers that stay in it go on where they were. The student stays an online student, to be
    trained further, saved or packed. Calibrate its SubLNs first ([`calibrate_sub_norm`]).

    Where a launcher started several processes, each calls this with the same arguments and takes its rows of every batch: the student
    is, in all of them, what one process makes of it (within rounding), the sooner the more rows a batch has.

    Memory, of the device: both models, if they lie there, or else (`device`) the layers of one window; Adam's states of what is trained
    of a window; the activations of one batch. Of the CPU: the hidden states of all own rows three times (student, teacher, target)
    in the dtype of the layers' outputs, unless they go to a file. The same arguments give the same result, wherever models and hidden states lie.

    Args:
        student: an online student of `teacher_model`.
        teacher_model: its full-precision source. Not changed.
        batches: model inputs, each one step: `input_ids` `[B, T]` int64 and optionally `attention_mask` (padding is left
            out of the loss), padded on either side or packed; labels are ignored.
        config: the options.
        progress: show bars, in the first process.
        on_step: called in every process after each step with the number of steps done and of all steps, of all windows, and the loss.
        checkpoint: a file that the first process writes after every window; where it is there, the run goes on behind its window and
            gives the same result as one that was not interrupted. It is left there at the end. Several processes must see the same file.
        device: computes. Default: where the student is. What lies elsewhere is brought there for as long as its window needs it, and
            the weights of a window are computed again in the backward pass, which saves several times their size.
        hidden_states: `"memory"`, `"disk"` (a file that is gone with the process), or `"auto"`: a file where they would take more
            than half of the free memory and there is a folder for it.
        scratch: folder for that file. Default: the checkpoint's.
        say: called with a line about what else takes its time, in every process.

    Returns:
        What was measured.

    Raises:
        SurgeryError: `student` is not an online student, or its decoder layers cannot be located.
        ValueError: there are no batches, one does not fit the models, the two models differ in depth, width or attention
            implementation, or the checkpoint is of another warm start.
        OSError: there is no room for hidden states or checkpoint.
        ProcessesError: the processes were given different models, batches or options, see different checkpoints, or another one failed.
        FloatingPointError: a window's loss is not finite.
    """
    config = config or WarmStartConfig()
    batches = list(batches)
    if not batches:
        raise ValueError("warm_start needs at least one batch")
    _online_layers(student)
    _check_alike(student, teacher_model)
    device = _device(device, student)
    check_alike({"student": student, "teacher": teacher_model}, batches, asdict(config), device)
    folder = scratch if scratch is not None or checkpoint is None else checkpoint.parent
    sizes = _size_of_states(student, teacher_model, batches)
    states = processes.together(
        lambda: HiddenStates(hidden_states_folder(hidden_states, folder, *sizes)), "making room for hidden states"
    )
    before = {parameter: parameter.requires_grad for parameter in student.parameters()}
    modes = {module: module.training for module in (student, teacher_model)}
    places = (Residents(student, device, changes=True), Residents(teacher_model, device, changes=False))
    try:
        student.requires_grad_(False).eval()
        teacher_model.eval()
        show = progress and processes.is_first()
        run = Run(student, teacher_model, batches, places, states, config, show, on_step, checkpoint, say)
        with freed_memory_kept(device.type == "cpu"):
            return run()
    finally:
        for place in places:
            place.only()
        states.close()
        for parameter, value in before.items():
            parameter.requires_grad_(value)
        for module, training in modes.items():
            module.train(training)


@contextmanager
def layers_on(model: PreTrainedModel, device: torch.device) -> Iterator[None]:
    """While it lasts, a model that does not lie on a device can be called there without gradients: each decoder layer is brought when it
    computes. What is changed meanwhile is kept."""
    with Residents(model, device, changes=True).whole():
        yield


def _device(device: torch.device | str | None, student: PreTrainedModel) -> torch.device:
    device = torch.device(student.device if device is None else device)
    if device.index is None and device.type not in ("cpu", "meta"):
        device = torch.device(device.type, torch.accelerator.current_device_index())
    return device


def _size_of_states(
    student: PreTrainedModel, teacher: PreTrainedModel, batches: list[Mapping[str, Any]]
) -> tuple[int, int]:
    """Bytes of the hidden states of the processes on this machine, and of all."""
    numbers = sum(math.prod(shape_of(batch)) for batch in batches) * student.config.get_text_config().hidden_size
    of_all = numbers * (student.dtype.itemsize + 2 * teacher.dtype.itemsize)
    count = processes.world_size()
    return of_all * min(int(os.environ.get("LOCAL_WORLD_SIZE", count)), count) // count, of_all


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
    attention = [attention_implementation(model.config) for model in (student, teacher)]
    if attention[0] != attention[1]:
        raise ValueError(f"student and teacher must use one attention implementation, not {attention}: masks differ")
