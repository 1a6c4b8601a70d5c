"""transformers' progress bar, one at a time."""

from __future__ import annotations

import time
from typing import Any

from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import has_length


# Seconds between two looks of the bar during an evaluation.
_INTERVAL = 0.5


class OneBarCallback(ProgressCallback):
    """An evaluation in the middle of a training says in the training's bar how far it is, where transformers' own callback opens a second bar
    below it. Else the same."""

    def __init__(self, max_str_len: int = 100):
        super().__init__(max_str_len)
        self._evaluated, self._shown_at = 0, 0.0

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """As in [`ProgressCallback`]."""
        bar = self.training_bar
        if bar is None:
            super().on_prediction_step(args, state, control, eval_dataloader, **kwargs)
            return
        self._evaluated += 1
        now = time.monotonic()
        if now - self._shown_at >= _INTERVAL:
            self._shown_at = now
            of_all = f"/{len(eval_dataloader)}" if has_length(eval_dataloader) else ""
            bar.set_postfix_str(f"evaluating {self._evaluated}{of_all}")

    def _evaluation_ends(self) -> None:
        if self.training_bar is not None and self._evaluated:
            self.training_bar.set_postfix_str("")
        self._evaluated = 0

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """As in [`ProgressCallback`]."""
        super().on_evaluate(args, state, control, **kwargs)
        self._evaluation_ends()

    def on_predict(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any = None, **kwargs: Any
    ) -> None:
        """As in [`ProgressCallback`]."""
        super().on_predict(args, state, control, metrics=metrics, **kwargs)
        self._evaluation_ends()


def with_one_bar(callbacks: list[TrainerCallback]) -> None:
    """Put an [`OneBarCallback`] in the place of transformers' own bar, in place; a user's own stays."""
    for index, callback in enumerate(callbacks):
        if type(callback) is ProgressCallback:
            callbacks[index] = OneBarCallback(callback.max_str_len)
