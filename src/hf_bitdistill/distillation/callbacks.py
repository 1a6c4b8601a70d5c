"""The quantisation warm-up: from full precision to ternary over the first steps."""

from __future__ import annotations

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..layers import set_quantization_share


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
