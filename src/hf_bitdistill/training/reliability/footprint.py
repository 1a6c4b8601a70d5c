"""How much a training will write."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path
from typing import cast

from torch import nn
from transformers import TrainingArguments
from transformers.utils import logging

from ...files.disk_room import check_room, check_writable, parameter_bytes, size_text
from ...files.training_checkpoints import list_checkpoints


logger = logging.get_logger(__name__)

# States of the size of the parameters, by how the optimizer's name begins. What is not here is taken for small.
_STATES = {
    "adamw": 2,
    "adam": 2,
    "paged_adam": 2,
    "ademamix": 3,
    "lion": 1,
    "paged_lion": 1,
    "rmsprop": 1,
    "adagrad": 1,
}
_LOW_BITS = {"8bit": 1, "4bit": 0.5}


def optimizer_bytes(model: nn.Module, optim: str) -> int:
    """About the size of the states of `TrainingArguments(optim=...)`."""
    name = str(getattr(optim, "value", optim))
    if name.startswith("adafactor"):
        return 0
    states = next((count for start, count in _STATES.items() if name.startswith(start)), 0)
    bits = next((size for mark, size in _LOW_BITS.items() if mark in name), None)
    if bits is None:
        return states * parameter_bytes(model, trainable_only=True)
    numbers = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return int(states * bits * numbers)


def check_training_room(model: nn.Module, args: TrainingArguments, optim: str | None = None) -> None:
    """Refuse an output folder that cannot be written, or has no room for the checkpoints that will lie in it at the same time
    (`save_total_limit` and the one that is being written; two, without a limit) and for the model in the end.

    Args:
        optim: default: `args.optim`.

    Raises:
        OSError: which, and how much is missing.
    """
    if not args.should_save:
        return
    output = Path(cast(str, args.output_dir))
    check_writable(output)
    final = parameter_bytes(model, trainable_only=hasattr(model, "peft_config"))
    state = 0 if args.save_only_model else optimizer_bytes(model, optim or args.optim)
    saves = _number_of_saves(args)
    limit = args.save_total_limit
    at_once = min(saves, limit + 1 if limit and limit > 0 else 2)
    # Those there are take their room already, and leave it as new ones come.
    count = max(1, int(at_once) - len(list_checkpoints(output))) if at_once else 0
    needs = {f"{count} checkpoint{'s' if count > 1 else ''} of model and optimizer": count * (final + state)}
    needs["the model in the end"] = final
    check_room(output, needs)
    if not limit and math.isfinite(saves):
        try:
            check_room(output, {"all checkpoints": int(saves) * (final + state) + final})
        except OSError:
            logger.warning(
                f"{output} has no room for all {int(saves)} checkpoints of {size_text(final + state)} of this run: set "
                "save_total_limit."
            )


def _number_of_saves(args: TrainingArguments) -> float:
    strategy = str(getattr(args.save_strategy, "value", args.save_strategy))
    if strategy == "no":
        return 0
    if strategy == "epoch":
        return math.ceil(args.num_train_epochs) if args.max_steps <= 0 else math.inf
    if strategy != "steps" or not args.save_steps:
        return math.inf
    if args.save_steps < 1:
        return math.ceil(1 / args.save_steps)
    return math.ceil(args.max_steps / args.save_steps) if args.max_steps > 0 else math.inf


def free_bytes(folder: str | os.PathLike) -> int:
    """Free space where a folder is."""
    return shutil.disk_usage(folder).free
