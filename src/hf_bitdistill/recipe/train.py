"""Training: the one place where training arguments are built, and a trainer is run, continued and saved."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer import TRAINING_ARGS_NAME

from ..files.training_checkpoints import choose
from ..machine import processes
from ..machine.environment import default_device, free_memory
from ..training import ReliableTrainer
from .progress import Progress, ProgressCallback
from .run_engine import forget_engine
from .store import CHECKPOINTS


Arguments = TypeVar("Arguments", bound=TrainingArguments)

# Share of the memory that is free, or will be beside weights, gradients and the optimiser's states, for the activations of a micro batch.
_MEMORY_SHARE = 0.5
# Bytes a trained parameter takes beside itself: its gradient, Adam's two moments, and a copy in 16 bits.
_BESIDE_A_PARAMETER = 14
# Bytes kept a token, layer and channel for the backward pass (counted of Llama: 105 and 61), with room for the relations of attention, and
# a token and entry of the vocabulary.
_KEPT_A_LAYER, _KEPT_A_LAYER_BF16, _KEPT_OF_LOGITS = 130, 85, 4


@dataclass(frozen=True)
class Machine:
    """How this machine trains.

    Attributes:
        bf16: whether to compute in bfloat16.
        checkpoint_seconds: between two checkpoints.
    """

    bf16: bool
    checkpoint_seconds: float = 300.0

    @property
    def device(self) -> torch.device:
        return default_device()

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)


def fast_bf16() -> bool:
    """Whether this device multiplies bfloat16 in hardware."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if torch.accelerator.is_available():
        return False
    try:
        flags = Path("/proc/cpuinfo").read_text().split("flags", 1)[1].split("\n", 1)[0].split()
    except (OSError, IndexError):
        return False
    return bool({"avx512_bf16", "amx_bf16"} & set(flags))


def others_load() -> float | None:
    """The load average, where other processes leave this one too few cores for its threads; `None` where they do not."""
    if not hasattr(os, "getloadavg") or "OMP_WAIT_POLICY" in os.environ:
        return None
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    return load if torch.get_num_threads() > 1 and load + torch.get_num_threads() > 2 * cores else None


def micro_batch(batch: int, length: int, config: Any, machine: Machine, trained: int) -> int:
    """The largest divisor of a batch whose activations fit a share of the free memory, in the process that has least of it. Called by all
    processes.

    Args:
        batch: of this process.
        length: tokens of the longest example.
        config: of the model.
        trained: parameters that this process will hold gradients and states of.
    """
    config = config.get_text_config()
    a_layer = _KEPT_A_LAYER_BF16 if machine.bf16 else _KEPT_A_LAYER
    kept = a_layer * config.num_hidden_layers * config.hidden_size + _KEPT_OF_LOGITS * config.vocab_size
    # The memory of a CPU is shared by the processes of its machine.
    sharing = processes.local_world_size() if machine.device.type == "cpu" else 1
    free = free_memory(machine.device) / sharing - _BESIDE_A_PARAMETER * trained
    fits = min(processes.gather(_MEMORY_SHARE * free / (kept * max(length, 1))))
    return next((size for size in range(batch, 0, -1) if batch % size == 0 and size <= fits), 1)


def training_arguments(
    kind: type[Arguments],
    folder: Path,
    machine: Machine,
    *,
    steps: int,
    batch: int,
    micro: int,
    rate: float,
    seed: int,
    **more: Any,
) -> Arguments:
    """Arguments of a training in a stage's folder.

    Args:
        kind: of arguments.
        batch: examples a step, of all processes.
        micro: at once in one process, see `micro_batch`.
        more: further options, which win.

    Raises:
        ValueError: `batch` is no multiple of what the processes read at once.
    """
    count = processes.world_size()
    micro = max(1, min(batch // count, micro))
    if batch % (count * micro):
        raise ValueError(f"a batch of {batch} is no multiple of a micro batch of {micro} in {count} process(es)")
    options = {
        "output_dir": str(folder / CHECKPOINTS),
        "max_steps": steps,
        "per_device_train_batch_size": micro,
        "per_device_eval_batch_size": micro,
        "gradient_accumulation_steps": batch // (count * micro),
        "learning_rate": rate,
        # The dataset comes in its order, see `order.py`.
        "train_sampling_strategy": "sequential",
        "logging_steps": max(1, steps // 50),
        "logging_nan_inf_filter": False,
        # By the clock, see `_SaveByTime`.
        "save_strategy": "no",
        "save_total_limit": 2,
        "bf16": machine.bf16,
        "seed": seed,
        "data_seed": seed,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": machine.device.type == "cpu",
    }
    return kind(**{**options, **more})


class _SaveByTime(TrainerCallback):
    """A checkpoint every so many seconds by the clock of the first process, which the others ask at steps that all know beforehand."""

    def __init__(self, seconds: float):
        self.seconds, self.last = seconds, time.perf_counter()
        # The step at which the clock is looked at, and the last one that was done when the clock was set.
        self.look_at, self.from_step = 0, 0

    def on_train_begin(self, args, state, control, **kwargs):
        self.from_step = self.look_at = state.global_step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step < self.look_at:
            return control
        is_time, steps = processes.from_first(lambda: self._look(state.global_step), "looking at the clock")
        self.look_at = state.global_step + steps
        if is_time and state.global_step < state.max_steps:
            control.should_save = True
        return control

    def _look(self, step: int) -> tuple[bool, int]:
        """Whether it is time, and after how many steps to look again."""
        taken = time.perf_counter() - self.last
        if taken >= self.seconds or processes.world_size() == 1:
            return taken >= self.seconds, 1
        done = max(step - self.from_step, 1)
        return False, max(1, int((self.seconds - taken) * done / taken))

    def on_save(self, args, state, control, **kwargs):
        self.last, self.from_step = time.perf_counter(), state.global_step


def train(
    trainer: ReliableTrainer, folder: Path, tokenizer: PreTrainedTokenizerBase, machine: Machine, progress: Progress
) -> dict[str, Any]:
    """Train in a stage's folder, from its newest checkpoint if there is one, and save the model. Called by all processes.

    Returns:
        The losses that were logged, whether it was continued, and how many steps were taken.
    """
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(ProgressCallback(progress))
    trainer.add_callback(_SaveByTime(machine.checkpoint_seconds))
    found = processes.from_first(lambda: choose(folder / CHECKPOINTS), "choosing a checkpoint")
    checkpoint = found.checkpoint
    if found.skipped:
        progress.say(f"  passed over: {found.reasons()}")
    if checkpoint is not None:
        progress.say(f"  goes on from step {checkpoint.name.rpartition('-')[2]}")
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    trainer.save_model(str(folder / "model"))
    forget_engine()

    def complete() -> None:
        tokenizer.save_pretrained(folder / "model")
        (folder / "model" / TRAINING_ARGS_NAME).unlink(missing_ok=True)  # (names folders of this machine)

    processes.on_first(complete, "saving the tokenizer")
    curve = [entry for entry in trainer.state.log_history if "loss" in entry]
    if any(not math.isfinite(float(entry["loss"])) for entry in curve):
        raise FloatingPointError("the training's loss is not finite: lower the learning rate")
    return {"curve": curve, "resumed": checkpoint is not None, "steps": trainer.state.global_step}


def save(model: PreTrainedModel, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """As `write_model`, of a model that all processes have, by the first one. Called by all."""
    processes.on_first(lambda: write_model(model, folder, tokenizer), f"saving {folder / 'model'}")


def write_model(model: PreTrainedModel, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Into `model/` of a stage's folder, with the tokenizer."""
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")


def steps_for(examples: int, epochs: float, rows: int, batch: int) -> int:
    """Steps that read at most so many examples, and the rows at most so often."""
    return max(1, math.floor(min(examples, epochs * rows) / batch))
