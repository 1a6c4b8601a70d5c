"""What changes in the student's layers while it is trained: quantisation warm-up, and the leak of the dead zone."""

from __future__ import annotations

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..layers import set_dead_zone_leak, set_quantization_share


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
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module = None, **kwargs
    ) -> None:
        self.set_share(model, self.share_at(state.global_step))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module = None, **kwargs
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
        return self.leak * max(0.0, 1.0 - step / (self.duration * max_steps))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module = None, **kwargs
    ) -> None:
        set_dead_zone_leak(model, self.leak_at(state.global_step, state.max_steps))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module = None, **kwargs
    ) -> None:
        set_dead_zone_leak(model, 0.0)


def layer_callbacks(args: TrainingArguments) -> list[TrainerCallback]:
    """The callbacks that a [`DistillationConfig`] asks for."""
    callbacks: list[TrainerCallback] = []
    if args.quantization_warmup_steps:
        callbacks.append(QuantizationWarmupCallback(args.quantization_warmup_steps))
    if args.dead_zone_leak:
        callbacks.append(DeadZoneLeakCallback(args.dead_zone_leak))
    return callbacks
