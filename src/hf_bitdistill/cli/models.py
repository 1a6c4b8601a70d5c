"""Models and tokenizers for the commands, with errors that say which path was wrong."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from transformers import (
    PreTrainedModel,
    TrainingArguments,
)

from ..data import Task
from ..machine import processes
from ..machine.environment import to
from ..machine.whole_models import whole_models
from ..modeling.locate import find_model
from ..modeling.model_heads import auto_class
from ..modeling.preflight import is_student_checkpoint
from ..modeling.surgery import is_student
from ..options.parsing import require
from ..training.calibration import calibrate_sub_norm
from .arguments import ModelArguments, StudentArguments


# Examples in a batch that SubLNs are calibrated with.
CALIBRATION_ROWS = 8


def load_model(
    arguments: ModelArguments, head: str = "causal_lm", task: Task | None = None, **kwargs: Any
) -> PreTrainedModel:
    """Load a model with one of the two heads.

    Args:
        task: names the classes of a new classification head, which is made if the checkpoint has none; without it the
            model must be complete.

    Raises:
        FileNotFoundError, OSError: the model cannot be found.
        ValueError: no model was named, or its checkpoint lacks weights.
    """
    path = find_model(require(arguments.model_name_or_path, "model_name_or_path"))
    dtype = arguments.dtype if arguments.dtype == "auto" else getattr(torch, arguments.dtype)
    may_add_head = head == "sequence_classification" and task is not None
    if head == "sequence_classification" and task is not None:
        kwargs["id2label"] = task.id2label
        kwargs["label2id"] = {word: index for index, word in task.id2label.items()}
    loaded: Any = auto_class(head).from_pretrained(
        path,
        dtype=dtype,
        attn_implementation=arguments.attn_implementation,
        output_loading_info=True,
        **kwargs,
    )
    model, info = loaded
    body = f"{model.base_model_prefix}."
    missing = sorted(key for key in info["missing_keys"] if key.startswith(body) or not may_add_head)
    if missing:
        raise ValueError(f"{path} has no weights for {', '.join(missing[:3])}: it is no complete {head} model")
    return model


def load_student(
    model_arguments: ModelArguments,
    student_arguments: StudentArguments,
    head: str = "causal_lm",
    task: Task | None = None,
    training: TrainingArguments | None = None,
) -> tuple[PreTrainedModel, bool]:
    """An online student, from a full-precision model or resumed.

    Args:
        training: how it will be trained. A new student is whole in every process, whatever the engine, so that it can be calibrated.

    Returns:
        `(student, is_new)`: whether it was just made of a full-precision model.

    Raises:
        ValueError: the model is packed (offline) or quantised by another method.
    """
    path = find_model(require(model_arguments.model_name_or_path, "model_name_or_path"))
    if is_student_checkpoint(path):
        return load_model(model_arguments, head, task), False
    with whole_models(training):
        return load_model(model_arguments, head, task, quantization_config=student_arguments.to_config()), True


def calibrate(
    student: PreTrainedModel,
    arguments: StudentArguments,
    batches: Iterable[dict],
    training: TrainingArguments | None = None,
) -> None:
    """Set the SubLNs of a new student from a few batches, if the options say so.

    Args:
        training: how it will be trained: it is moved to that device, unless it will be sharded because one device may not hold it,
            and computes in that precision (flash attention knows no other).
    """
    if not (arguments.calibrate_sub_norm and arguments.sub_norm != "none" and is_student(student)):
        return
    precision: AbstractContextManager = nullcontext()
    if training is not None and not _is_sharded(training):
        to(student, training.device)
        if training.bf16 or training.fp16:
            dtype = torch.bfloat16 if training.bf16 else torch.float16
            precision = torch.autocast(training.device.type, dtype)
    with precision:
        count = calibrate_sub_norm(student, batches)
    if processes.is_first():
        print(f"calibrated {count} SubLNs", flush=True)


def _is_sharded(training: TrainingArguments) -> bool:
    """Whether FSDP or DeepSpeed is asked for, by an option or by `accelerate launch`."""
    return bool(training.fsdp or training.deepspeed_plugin) or parse_flag_from_env("ACCELERATE_USE_FSDP")
