"""`DistillationConfig`: the training arguments of `DistillationTrainer`."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from transformers import SchedulerType, TrainingArguments

from ..files.redaction import redact, secrets_of
from ..hub.push import PUSH_FORMATS, check_push_format
from .losses.depths import relation_layers as relation_layers
from .losses.depths import relative_depth as relative_depth
from .losses.divergences import DIVERGENCES
from .losses.terms import TERMS
from .optimizers import check_optimizer


TEACHER_LOSS_WEIGHTS = tuple(term.weight_option for term in TERMS if term.needs_teacher and term.weight_option)
"""Weights of the losses that compare the student with a teacher."""


@dataclass(repr=False)
class DistillationConfig(TrainingArguments):
    r"""Arguments of [`DistillationTrainer`]: all of `transformers.TrainingArguments`, and those of the losses

        loss = ce_loss_weight * L_CE + logits_loss_weight * L_LD + attention_loss_weight * L_AD
               + hidden_loss_weight * L_hidden

    The first three are those of BitNet Distillation (arXiv 2510.13998, stage 3). The default weights are those that served best after a warm
    start or a short pre-training (`benchmarks/results/accuracy`). The published ones belong to students that were pre-trained on ten
    billion tokens, all with `temperature=5` and the `"cosine"` relation of 32 heads: classification `logits_loss_weight=10,
    attention_loss_weight=1e5`, summarisation `logits_loss_weight=1, attention_loss_weight=1e3`; batch 32, learning rate 5e-6
    to 5e-5, weight decay 0.01 to 0.1, warm-up over 5 % of the steps, 2 to 3 epochs.

    Rate, schedule and decay have defaults of a ternary student, not those of `TrainingArguments`. The recipe trains with the same.

    Args:
        learning_rate (`float`, defaults to 2e-4), lr_scheduler_type (`str`, defaults to `"cosine"`), warmup_steps (`float`, defaults to
            0.05, that share of the steps), weight_decay (`float`, defaults to 0.01), adam_beta2 (`float`, defaults to 0.95):
            As in `TrainingArguments`.
        teacher_model_name_or_path (`str`, *optional*):
            The teacher, if none is given to the trainer as an object.
        teacher_model_init_kwargs (`dict`, *optional*):
            Keyword arguments of the teacher's `from_pretrained` (`dtype`, `attn_implementation`, ...). As a JSON
            string on a command line.
        teacher_cache (`str`, *optional*):
            Folder that `bitdistill cache-teacher` ([`cache_teacher_logits`]) wrote. The logits loss compares the student with the
            teacher's most likely tokens in it, and with what all others weigh together; no teacher is in memory. Every other loss on
            a teacher has to be off.
        allow_full_precision_student (`bool`, defaults to `False`):
            Whether the student may be a full-precision model. Otherwise distilling into one is refused, and fine-tuning one warns.
        max_sequence_length (`int`, *optional*):
            Tokens that an example of a dataset of `messages`, or of `prompt` and `completion`, may have; longer ones are left out, and a
            warning says how many. Default: the student's context.
        temperature (`float`, defaults to 5.0):
            tau of the logits loss `tau^2 * D(softmax(t / tau), softmax(s / tau))`.
        logits_divergence (`str`, defaults to `"forward_kl"`):
            D: `"forward_kl"`, KL(teacher || student), the published one; `"reverse_kl"`, KL(student || teacher); or `"jsd"`, the
            generalised Jensen-Shannon divergence (see [`~hf_bitdistill.training.losses.divergences.jsd.GeneralizedJSD`]).
        jsd_beta (`float`, defaults to 0.5):
            Its beta, the teacher's share of the mixture. At 0 it is taken to be the forward KL and at 1 the reverse KL, as in TRL; the
            divergence itself vanishes towards both ends, so that between them its weight has to grow like `1 / beta` or
            `1 / (1 - beta)`.
        ce_loss_weight (`float`, defaults to 1.0):
            Weight of the cross entropy on the labels.
        logits_loss_weight (`float`, defaults to 1.0):
            lambda, weight of the logits loss. 0 turns it off.
        attention_loss_weight (`float`, defaults to 100.0):
            gamma, weight of the attention relation loss. 0 turns it off.
        attention_layers (`list[int]`, *optional*):
            Layers of the student whose Q, K, V relations are distilled; negative ones count from the end. Default:
            one late layer, at 22/28 of the depth (layer 22 of a student of 28 layers, as published); where that layer
            has no attention, as in a hybrid model, the nearest one that has.
        teacher_attention_layers (`list[int]`, *optional*):
            Their counterparts in the teacher, of the same number. Default: a negative index of `attention_layers` is
            the same one from the teacher's end, any other one the layer (with attention) at the same relative depth.
        relation_heads (`int`, *optional*):
            Number of heads into which the attention states are regrouped; must divide the widths of Q, K and V of
            both models. Default: the largest number up to 32 (the published one) that does and leaves every head
            at least 4 dimensions. As the `"cosine"` loss is divided by it, write it down with a tuned
            `attention_loss_weight`.
        relation_normalization (`str`, defaults to `"cosine"`):
            `"cosine"` (what the published coefficients belong to) or `"scaled_dot"` (the paper's equation). Their
            coefficients are not interchangeable, see [`attention_relation_loss`].
        relation_causal (`bool`, defaults to `False`):
            Whether a token relates only to itself and its predecessors.
        hidden_loss_weight (`float`, defaults to 0.0):
            Weight of the hidden state loss (see [`hidden_state_loss`]), which asks of every layer of the student what the
            layer at the same relative depth of the teacher hands on. Both must be equally wide. Not part of the published
            recipe.
        hidden_loss_share (`float`, *optional*):
            Share of the steps over which the weight of the hidden state loss falls linearly to 0; after them it is neither
            computed nor logged. Default: it stays.
        kl_chunk_size (`int`, *optional*):
            Tokens whose float32 softmaxes over the vocabulary exist at the same time: they take about
            `6 * kl_chunk_size * vocabulary * 4` bytes. Default: 256 on an accelerator (0.9 GB for a vocabulary of 150,000);
            on a CPU few enough for its cache. A causal LM's logits themselves exist for somewhat more tokens (128 MiB a model on a CPU,
            1024 tokens on an accelerator), and never as a whole.
        quantization_warmup_steps (`int`, defaults to 0):
            Over so many steps the student's layers go from full precision to ternary (share
            `min(1, (step + 1) / quantization_warmup_steps)`). 0: ternary from the first step. Evaluation is always
            fully ternary.
        dead_zone_leak (`float`, defaults to 0.0):
            Weights with code 0 take part with this share of their value, falling to 0 over four fifths of the training
            (see [`DeadZoneLeakCallback`]). Evaluation is always fully ternary.
        scale_gradient (`bool`, defaults to `False`):
            The scales are learned too: latent weights get the gradient of their absmean as well, which is a constant
            otherwise (see [`~hf_bitdistill.quantization.fake_quantized_linear`]).
        weight_decay_share (`float`, defaults to 1.0):
            Share of the steps with weight decay (see [`WeightDecayCallback`]).
        nan_patience (`int`, defaults to 3):
            After so many steps in a row whose loss or gradient is not finite the run stops. Those before are left out: they
            do not change the student. Overflows of float16 gradients, which the gradient scaler deals with, do not count.
        push_format (`str`, defaults to `"packed"`):
            What `push_to_hub` publishes: `"packed"`, 1.6 bits a weight; `"online"`, the trainable student, in the folder `online`; or
            `"both"`.
        logging_nan_inf_filter (`bool`, defaults to `False`):
            As in `TrainingArguments`, where it is on: it shows losses that are not finite as others.

    Numbers that are not finite, and negative ones where they mean nothing, are refused. Secrets (`hub_token`, the `token` of
    `teacher_model_init_kwargs`) are kept for the run alone: `to_dict`, which loggers get, the text of the arguments and the
    `training_args.bin` beside a model show or hold none.
    """

    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, "teacher_model_init_kwargs"]

    learning_rate: float = field(default=2e-4, metadata={"help": "Learning rate after the warm-up."})
    lr_scheduler_type: SchedulerType | str = field(default="cosine", metadata={"help": "Schedule of the rate."})
    warmup_steps: float = field(default=0.05, metadata={"help": "Steps of the warm-up; below 1: their share."})
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay."})
    adam_beta2: float = field(default=0.95, metadata={"help": "Beta2 of Adam."})
    teacher_model_name_or_path: str | None = field(
        default=None, metadata={"help": "The teacher: a model on the Hub or a local folder."}
    )
    teacher_model_init_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Keyword arguments of the teacher's from_pretrained, as JSON."}
    )
    teacher_cache: str | None = field(
        default=None,
        metadata={"help": "Folder of bitdistill cache-teacher, in place of a teacher for the logits loss."},
    )
    allow_full_precision_student: bool = field(
        default=False, metadata={"help": "Whether the student may be a full-precision model."}
    )
    max_sequence_length: int | None = field(
        default=None,
        metadata={"help": "Tokens an example of messages or of prompt and completion may have. Default: the context."},
    )
    temperature: float = field(default=5.0, metadata={"help": "Temperature of the logits loss."})
    logits_divergence: str = field(
        default="forward_kl", metadata={"help": "Divergence of the logits loss.", "choices": list(DIVERGENCES)}
    )
    jsd_beta: float = field(
        default=0.5, metadata={"help": "Beta of logits_divergence=jsd: 0 is the forward KL, 1 the reverse KL."}
    )
    ce_loss_weight: float = field(default=1.0, metadata={"help": "Weight of the cross entropy on the labels."})
    logits_loss_weight: float = field(default=1.0, metadata={"help": "Weight of the logits loss; 0 turns it off."})
    attention_loss_weight: float = field(
        default=100.0, metadata={"help": "Weight of the attention relation loss; 0 turns it off."}
    )
    attention_layers: list[int] | None = field(
        default=None,
        metadata={"help": "Student layers of the relation loss, negative from the end. Default: one at 22/28."},
    )
    teacher_attention_layers: list[int] | None = field(
        default=None, metadata={"help": "Their counterparts in the teacher. Default: at the same relative depth."}
    )
    relation_heads: int | None = field(
        default=None, metadata={"help": "Relation heads. Default: the largest number up to 32 that fits both models."}
    )
    relation_normalization: str = field(
        default="cosine", metadata={"help": "Normalisation of the relation.", "choices": ["cosine", "scaled_dot"]}
    )
    relation_causal: bool = field(
        default=False, metadata={"help": "Whether a token relates only to itself and its predecessors."}
    )
    hidden_loss_weight: float = field(
        default=0.0, metadata={"help": "Weight of the hidden state loss; 0 turns it off."}
    )
    hidden_loss_share: float | None = field(
        default=None,
        metadata={"help": "Share of the steps over which the hidden state loss falls to 0. Default: it stays."},
    )
    kl_chunk_size: int | None = field(
        default=None,
        metadata={"help": "Tokens a chunk of the logits losses. Default: 256, on a CPU what its cache holds."},
    )
    quantization_warmup_steps: int = field(
        default=0, metadata={"help": "Steps over which the student goes from full precision to ternary."}
    )
    dead_zone_leak: float = field(
        default=0.0, metadata={"help": "Share of their value with which weights of code 0 take part at first."}
    )
    scale_gradient: bool = field(
        default=False, metadata={"help": "Whether the scales of the weights are learned too."}
    )
    weight_decay_share: float = field(default=1.0, metadata={"help": "Share of the steps with weight decay."})
    nan_patience: int = field(
        default=3, metadata={"help": "Steps in a row that are not finite after which the run stops."}
    )
    push_format: str = field(
        default="packed", metadata={"help": "What is pushed to the Hub.", "choices": list(PUSH_FORMATS)}
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Show losses that are not finite as the mean of others."}
    )

    if TYPE_CHECKING:
        output_dir: str = ""  # `TrainingArguments` says `str | None`, and sets it where it is not given

    def __post_init__(self):
        super().__post_init__()
        _validate(self)
        _check_numbers(self)

    def to_dict(self) -> dict[str, Any]:
        """As in `TrainingArguments`, without secrets at any depth."""
        return redact(super().to_dict(), secrets_of(_fields(self)))

    def __str__(self) -> str:
        values = redact(_fields(self))
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in sorted(values.items()))})"

    __repr__ = __str__

    def __reduce__(self) -> tuple:
        # What is pickled goes to a file (training_args.bin), and with the file to the Hub.
        return _unpickle, (type(self), redact(self.__dict__, secrets_of(_fields(self)), mask=None))

    def __copy__(self) -> DistillationConfig:
        return _unpickle(type(self), self.__dict__)

    def __deepcopy__(self, memo: dict) -> DistillationConfig:
        return _unpickle(type(self), copy.deepcopy(self.__dict__, memo))


@dataclass(repr=False)
class PretrainingConfig(DistillationConfig):
    """[`DistillationConfig`] with the defaults of continual pre-training on plain text.

    With a teacher, its whole next-token distribution is a second target beside the token itself, unsoftened: of plain text
    every position is a label, and a teacher of the same tokens knows more of it than the one token that came. The relation
    loss is off; it may be turned on. Without a teacher (`bitdistill pretrain` without one) only the tokens count.

    `learning_rate` is 1e-3, and `dead_zone_leak` 1.
    """

    learning_rate: float = field(default=1e-3, metadata={"help": "Learning rate after the warm-up."})
    temperature: float = field(default=1.0, metadata={"help": "Temperature of the logits loss."})
    logits_loss_weight: float = field(default=1.0, metadata={"help": "Weight of the logits loss, with a teacher."})
    attention_loss_weight: float = field(
        default=0.0, metadata={"help": "Weight of the attention relation loss; 0 turns it off."}
    )
    dead_zone_leak: float = field(
        default=1.0, metadata={"help": "Share of their value with which weights of code 0 take part at first."}
    )


def _fields(config: TrainingArguments) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config) if field.init}


def _unpickle(kind: type[DistillationConfig], values: Mapping[str, Any]) -> DistillationConfig:
    config = object.__new__(kind)
    config.__dict__.update(values)
    return config


# Where -1, or a negative number in general, does not stand for something.
_NOT_NEGATIVE = (
    "learning_rate",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "num_train_epochs",
    "warmup_steps",
    "warmup_ratio",
    "label_smoothing_factor",
    "logging_steps",
    "save_steps",
    "eval_steps",
)
_POSITIVE = (
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "nan_patience",
)


def _check_numbers(config: DistillationConfig) -> None:
    """Refuse numbers with which a training cannot end well, wherever they stand."""
    values = _fields(config)
    for name, value in values.items():
        where = _not_finite(name, value)
        if where:
            raise ValueError(f"{where[0]} must be a finite number, got {where[1]}")
    for names, lowest in ((_NOT_NEGATIVE, 0), (_POSITIVE, 1)):
        for name in names:
            value = values.get(name)
            if isinstance(value, (int, float)) and value < lowest:
                raise ValueError(f"{name} must be {'at least 1' if lowest else 'not negative'}, got {value}")
    for name in ("adam_beta1", "adam_beta2"):
        if values[name] >= 1:
            raise ValueError(f"{name} must be below 1, got {values[name]}")


def _not_finite(name: str, value: Any) -> tuple[str, float] | None:
    """The first number in an option that is not finite, with its name."""
    if isinstance(value, float) and not math.isfinite(value):
        return name, value
    parts = (
        value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    )
    return next(filter(None, (_not_finite(f"{name}[{key!r}]", part) for key, part in parts)), None)


def _validate(config: DistillationConfig) -> None:
    if isinstance(config.teacher_model_init_kwargs, str):
        # Without what it says: there may be a token in it.
        raise ValueError('teacher_model_init_kwargs is not a JSON object such as {"dtype": "bfloat16"}')
    check_optimizer(config.optim)
    if not (config.temperature > 0 and math.isfinite(config.temperature)):
        raise ValueError(f"temperature must be positive, got {config.temperature}")
    weights = [term.weight_option for term in TERMS if term.weight_option]
    for name in weights:
        value = getattr(config, name)
        if not (value >= 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be finite and not negative, got {value}")
    if not any(getattr(config, name) for name in weights):
        raise ValueError(f"{', '.join(weights)} are all 0: there is nothing to train on")
    if config.logits_divergence not in DIVERGENCES:
        raise ValueError(
            f"logits_divergence must be one of {', '.join(DIVERGENCES)}, got {config.logits_divergence!r}"
        )
    check_push_format(config.push_format)
    if not 0.0 <= config.jsd_beta <= 1.0:
        raise ValueError(f"jsd_beta must be between 0 and 1, got {config.jsd_beta}")
    if config.jsd_beta != 0.5 and config.logits_divergence != "jsd":
        raise ValueError(f"jsd_beta is of logits_divergence='jsd', which is {config.logits_divergence!r}")
    if config.max_sequence_length is not None and config.max_sequence_length < 1:
        raise ValueError(f"max_sequence_length must be at least 1, got {config.max_sequence_length}")
    if config.teacher_cache is not None:
        _validate_cache(config)
    if config.relation_normalization not in ("cosine", "scaled_dot"):
        raise ValueError(
            f"relation_normalization must be 'cosine' or 'scaled_dot', got {config.relation_normalization!r}"
        )
    if config.relation_heads is not None and config.relation_heads < 1:
        raise ValueError(f"relation_heads must be at least 1, got {config.relation_heads}")
    if config.kl_chunk_size is not None and config.kl_chunk_size < 1:
        raise ValueError(f"kl_chunk_size must be at least 1, got {config.kl_chunk_size}")
    if config.quantization_warmup_steps < 0:
        raise ValueError(f"quantization_warmup_steps must not be negative, got {config.quantization_warmup_steps}")
    if not 0.0 <= config.dead_zone_leak <= 1.0:
        raise ValueError(f"dead_zone_leak must be between 0 and 1, got {config.dead_zone_leak}")
    if not 0.0 <= config.weight_decay_share <= 1.0:
        raise ValueError(f"weight_decay_share must be between 0 and 1, got {config.weight_decay_share}")
    if config.hidden_loss_share is not None and not 0.0 < config.hidden_loss_share <= 1.0:
        raise ValueError(f"hidden_loss_share must be above 0 and at most 1, got {config.hidden_loss_share}")
    student_layers, teacher_layers = config.attention_layers, config.teacher_attention_layers
    if student_layers is not None and not student_layers:
        raise ValueError("attention_layers is empty: set attention_loss_weight=0 to turn the relation loss off")
    # Without attention_layers the student has one (default) layer.
    if teacher_layers is not None and len(teacher_layers) != len(student_layers or [0]):
        raise ValueError(
            f"attention_layers {student_layers or '(default: one layer)'} and teacher_attention_layers "
            f"{teacher_layers} must be of equal number"
        )
    if config.attention_loss_weight:
        checkpointing = config.gradient_checkpointing_kwargs or {}
        if config.gradient_checkpointing and isinstance(checkpointing, Mapping) and checkpointing.get("use_reentrant"):
            raise ValueError(
                "attention distillation needs non-reentrant activation checkpointing: set "
                'activation_checkpointing_kwargs={"use_reentrant": False}'
            )


def _validate_cache(config: DistillationConfig) -> None:
    live = [
        term.weight_option
        for term in TERMS
        if term.needs_teacher and not term.can_be_cached and term.is_on(config) and term.weight_option
    ]
    if live:
        raise ValueError(
            f"{', '.join(live)} need a live teacher, and teacher_cache holds its logits alone: set {'it' if len(live) == 1 else 'them'} to 0"
        )
    if not any(term.can_be_cached and term.is_on(config) for term in TERMS):
        raise ValueError("teacher_cache is set and logits_loss_weight is 0: nothing would read it")
    if config.teacher_model_name_or_path is not None:
        raise ValueError(
            "teacher_cache stands in the place of a teacher, and teacher_model_name_or_path is set too: leave out one of them"
        )


def check_one_device(args: TrainingArguments) -> None:
    """Refuse several devices in one process, over which `Trainer` would spread every batch by `DataParallel`.

    Raises:
        ValueError: there are several.
    """
    if args.n_gpu > 1:
        raise ValueError(
            "torch.nn.DataParallel is not supported: start one process per device (torchrun, accelerate launch) "
            "or make one device visible"
        )


def needs_teacher(args: DistillationConfig) -> bool:
    """Whether any loss on a live teacher is on."""
    return args.teacher_cache is None and any(getattr(args, name) for name in TEACHER_LOSS_WEIGHTS)
