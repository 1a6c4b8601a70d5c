"""Where the best checkpoint of a training is now."""

from __future__ import annotations

import os
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ...files.training_checkpoints import checkpoint_at


class BestCheckpointCallback(TrainerCallback):
    """A training that goes on knows its best checkpoint by the path that it had: of a folder that was moved, or is named otherwise now, that
    is none. It is found again by its step."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.best_model_checkpoint is not None and os.path.isdir(state.best_model_checkpoint):
            return
        place = checkpoint_at(str(args.output_dir), state.best_global_step)
        if place is not None:
            state.best_model_checkpoint = str(place)
