"""Distillation of a full-precision teacher into a (ternary) student: losses, Q/K/V capture, teacher, trainer."""

from .callbacks import (
    DeadZoneLeakCallback,
    QuantizationWarmupCallback,
    ScaleGradientCallback,
    WeightDecayCallback,
    training_callbacks,
)
from .config import TEACHER_LOSS_WEIGHTS, DistillationConfig, PretrainingConfig, check_one_device, needs_teacher
from .losses.attention_states import AttentionStateCapture, AttentionStates
from .losses.relations import (
    RelationLossSums,
    attention_relation_loss,
    hidden_state_loss,
    largest_relation_heads,
    regroup_heads,
    relation_divisor,
)
from .losses.targets import shift_labels
from .losses.terms import TERMS, LossTerm
from .losses.token_losses import TokenLossSums, TopLogits, distillation_token_losses
from .reliability.footprint import check_training_room
from .reliability.reliable_trainer import ReliableTrainer
from .teacher.cache import TeacherCache, cache_teacher_logits
from .teacher.teacher_model import check_same_tokenizer, load_teacher
from .trainer import DistillationTrainer


__all__ = [
    "TEACHER_LOSS_WEIGHTS",
    "TERMS",
    "AttentionStateCapture",
    "AttentionStates",
    "DeadZoneLeakCallback",
    "DistillationConfig",
    "DistillationTrainer",
    "LossTerm",
    "PretrainingConfig",
    "QuantizationWarmupCallback",
    "RelationLossSums",
    "ReliableTrainer",
    "ScaleGradientCallback",
    "TeacherCache",
    "TokenLossSums",
    "TopLogits",
    "WeightDecayCallback",
    "attention_relation_loss",
    "cache_teacher_logits",
    "check_one_device",
    "check_same_tokenizer",
    "check_training_room",
    "distillation_token_losses",
    "hidden_state_loss",
    "largest_relation_heads",
    "load_teacher",
    "needs_teacher",
    "regroup_heads",
    "relation_divisor",
    "shift_labels",
    "training_callbacks",
]
