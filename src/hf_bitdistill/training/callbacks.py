"""What changes while a student is trained: quantisation warm-up, the leak of the dead zone, learned scales, weight decay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..nn import set_dead_zone_leak, set_quantization_share, set_scale_gradient


if TYPE_CHECKING:
    from .config import DistillationConfig


def falling_share(step: int, max_steps: int, duration: float) -> float:
    """What falls linearly from 1 to 0 over a part of the training.

    Args:
        step: finished optimizer steps.
        max_steps: of the training.
        duration: share of `max_steps` after which it is 0, above 0.
    """
    return max(0.0, 1.0 - step / (duration * max_steps))


class QuantizationWarmupCallback(TrainerCallback):
    """Sets the quantised share of the student's layers before every step.

    `share = min(1, (step + 1) / warmup_steps)`, where `step` is the number of finished optimizer steps. It follows
    from `state.global_step` alone, so a resumed run continues exactly, and it is 1 after training, so that what is
    trained, packed or exported afterwards is the ternary model. Evaluation always is: the layers mix only in training
    mode.

    Args:
        warmup_steps: optimizer steps, at least 1.
    """

    def __init__(self, warmup_steps: int):
        if warmup_steps < 1:
            raise ValueError(f"warmup_steps must be at least 1, got {warmup_steps}")
        self.warmup_steps = warmup_steps
        self.share: float | None = None  # None: not set yet by this callback

    def share_at(self, step: int) -> float:
        """The share during the step that follows `step` finished ones: in (0, 1]."""
        return min(1.0, (step + 1) / self.warmup_steps)

    def set_share(self, model: nn.Module, share: float) -> None:
        """Sets the share, if it changed."""
        if share != self.share:
            set_quantization_share(model, share)
            self.share = share

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        self.set_share(model, self.share_at(state.global_step))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        self.set_share(model, 1.0)


class DeadZoneLeakCallback(TrainerCallback):
    """Sets the leak of the student's dead zones before every step.

    It falls linearly from `leak` to 0 over the first four fifths of the training; the last fifth trains the ternary model that is
    deployed. Like the warm-up it follows from the number of finished steps alone.

    Args:
        leak: share of its value with which a weight of code 0 takes part at first, in (0, 1].
    """

    duration = 0.8

    def __init__(self, leak: float):
        if not 0.0 < leak <= 1.0:
            raise ValueError(f"leak must be in (0, 1], got {leak}")
        self.leak = leak

    def leak_at(self, step: int, max_steps: int) -> float:
        """The leak during the step that follows `step` finished ones of `max_steps`."""
        return self.leak * falling_share(step, max_steps, self.duration)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        set_dead_zone_leak(model, self.leak_at(state.global_step, state.max_steps))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        set_dead_zone_leak(model, 0.0)


class ScaleGradientCallback(TrainerCallback):
    """Lets the gradients of the student's scales through while it is trained."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        set_scale_gradient(model, True)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        set_scale_gradient(model, False)


class WeightDecayCallback(TrainerCallback):
    """Turns the weight decay off after a share of the steps.

    The magnitude of a latent weight says how settled its code is; a decay that goes on keeps codes from settling
    (*The Era of 1-bit LLMs: Training Tips, Code and FAQ*, section 2, which stops it half way).

    Args:
        share: of the steps, in [0, 1).
    """

    def __init__(self, share: float):
        if not 0.0 <= share < 1.0:
            raise ValueError(f"share must be in [0, 1), got {share}")
        self.share = share

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        if state.global_step >= self.share * state.max_steps:
            for group in optimizer.param_groups:
                group["weight_decay"] = 0.0


def training_callbacks(args: DistillationConfig) -> list[TrainerCallback]:
    """The callbacks that a [`DistillationConfig`] asks for."""
    callbacks: list[TrainerCallback] = []
    if args.quantization_warmup_steps:
        callbacks.append(QuantizationWarmupCallback(args.quantization_warmup_steps))
    if args.dead_zone_leak:
        callbacks.append(DeadZoneLeakCallback(args.dead_zone_leak))
    if args.scale_gradient:
        callbacks.append(ScaleGradientCallback())
    if args.weight_decay and args.weight_decay_share < 1.0:
        callbacks.append(WeightDecayCallback(args.weight_decay_share))
    return callbacks
