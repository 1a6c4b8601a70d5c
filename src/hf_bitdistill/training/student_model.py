"""The student: loading one by name, and telling one from a full-precision model."""

from __future__ import annotations

import os

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedModel, TrainingArguments
from transformers.utils import logging

from ..config import BitNetConfig, ternary_method
from ..modeling.model_heads import auto_class, head_of
from ..modeling.preflight import is_student_checkpoint
from ..modeling.surgery import is_student


logger = logging.get_logger(__name__)


def load_student_model(name_or_path: str | os.PathLike) -> PreTrainedModel:
    """A student with float32 latent weights: the one of a checkpoint, or a new one with the options of `BitNetConfig()`.

    Raises:
        ValueError: the checkpoint is packed, quantised by another method, or lacks weights.
        OSError: it is not found.
    """
    options = {}
    if not is_student_checkpoint(name_or_path):
        options["quantization_config"] = BitNetConfig()
        logger.warning(
            f"{name_or_path} is a full-precision model: it becomes a ternary student with the options of BitNetConfig(). Its SubLNs start "
            "at one: calibrate_sub_norm or a warm start give a better start."
        )
    kind = auto_class(head_of(AutoConfig.from_pretrained(name_or_path)))
    model, info = kind.from_pretrained(name_or_path, dtype=torch.float32, output_loading_info=True, **options)
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(f"{name_or_path} has no weights for {', '.join(missing[:3])}: its checkpoint is incomplete")
    return model


def check_ternary(model: nn.Module, is_taught: bool) -> None:
    """Refuse to distil into a model that is no student, which is what a forgotten `BitNetConfig` leaves; say so where it is only
    fine-tuned.

    Args:
        model: unwrapped.
        is_taught: it learns from a teacher.

    Raises:
        ValueError: it learns from a teacher.
    """
    if is_student(model) or ternary_method(model.config) is not None:
        return
    problem = (
        f"{type(model).__name__} is in full precision, not a ternary student. Make it one (apply_bitnet(model, BitNetConfig()), or "
        "from_pretrained(..., quantization_config=BitNetConfig())), or set allow_full_precision_student=True"
    )
    if is_taught:
        raise ValueError(problem)
    logger.warning(f"{problem}, which silences this warning.")


def check_evaluation_dtype(model: nn.Module, args: TrainingArguments) -> None:
    """Refuse to evaluate a student as `Trainer` evaluates in 16 bits: it casts the model for good.

    Raises:
        ValueError: naming the option.
    """
    asked = next((name for name in ("bf16_full_eval", "fp16_full_eval") if getattr(args, name)), None)
    if asked and is_student(model):
        raise ValueError(
            f"{asked} casts the student: its latent weights would be rounded before they are quantised, so other codes would be measured, and "
            "saved. Leave it out; bf16=True computes in 16 bits and keeps the weights"
        )
