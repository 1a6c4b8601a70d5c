"""Distillation of a full-precision teacher into a (ternary) student: losses, Q/K/V capture, teacher, trainer."""

from .attention_states import AttentionStateCapture, AttentionStates
from .callbacks import (
    DeadZoneLeakCallback,
    QuantizationWarmupCallback,
    ScaleGradientCallback,
    WeightDecayCallback,
    training_callbacks,
)
from .config import DistillationConfig, PretrainingConfig
from .losses import (
    RelationLossSums,
    TokenLossSums,
    attention_relation_loss,
    distillation_token_losses,
    largest_relation_heads,
    regroup_heads,
    relation_divisor,
    shift_labels,
)
from .teacher import check_same_tokenizer, load_teacher
from .trainer import DistillationTrainer


__all__ = [
    "AttentionStateCapture",
    "AttentionStates",
    "DeadZoneLeakCallback",
    "DistillationConfig",
    "DistillationTrainer",
    "PretrainingConfig",
    "QuantizationWarmupCallback",
    "RelationLossSums",
    "ScaleGradientCallback",
    "TokenLossSums",
    "WeightDecayCallback",
    "attention_relation_loss",
    "check_same_tokenizer",
    "distillation_token_losses",
    "largest_relation_heads",
    "load_teacher",
    "regroup_heads",
    "relation_divisor",
    "shift_labels",
    "training_callbacks",
]
