"""What an accuracy benchmark runs, read from YAML."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hf_bitdistill import WarmStartConfig


ADDED = {"added": True}
"""Metadata of a field that came later: its default does not count in what identifies a stage, see `describe`."""

PASSED_ON = (
    "ce_loss_weight",
    "dead_zone_leak",
    "attention_loss_weight",
    "hidden_loss_weight",
    "hidden_loss_share",
    "scale_gradient",
    "weight_decay",
    "weight_decay_share",
    "lr_scheduler_type",
    "torch_compile",
)
"""Fields of `PretrainSettings` that are options of `PretrainingConfig` of the same name."""

ADDED_TO_WARM_START = {"loss_unit": "median"}
"""Fields of `WarmStartConfig` that came later, with what rows before them did."""

# Options of an arm's warm start that are not `WarmStartConfig`'s.
_WARM_START_EXTRAS = ("tokens", "batch_size", "budget_share")

# What an arm means that does not say otherwise: the defaults of the time at which the first rows were recorded.
_WARM_START_DEFAULTS = {
    "window_stride": 2,
    "steps_per_window": 500,
    "start": "absmean",
    "learning_rate": 1e-2,
    "loss_unit": "median",
}


@dataclass(frozen=True)
class TextSettings:
    """The plain text of warm start, continual pre-training and perplexity.

    Args:
        source: `"corpus"` (the folder `corpus` of the data), `"docstrings"` (of installed packages; splits `train`, `validation`, `test`) or
            `"teacher"` (sampled from the full-precision model).
        block_size: tokens of a block.
        sampled_tokens: of text sampled from the teacher; a larger budget reads it more than once.
        splits: of the corpus or the docstrings, for perplexity; with `"teacher"` held-out samples are read instead.
        eval_blocks: blocks of each of them, at most.
    """

    source: str = "corpus"
    block_size: int = 512
    sampled_tokens: int = 1_000_000
    splits: tuple[str, ...] = ("validation", "wikitext2_test")
    eval_blocks: int = 128


@dataclass(frozen=True)
class PretrainSettings:
    """Continual pre-training.

    Args:
        tokens: read by the optimiser.
        batch_size, micro_batch_size: blocks a step, and at once.
        logits_loss_weight: of the full-precision model's distributions (temperature 1); 0: no teacher.
        quantization_warmup_share: share of the steps over which layers go from full precision to ternary.
        ce_loss_weight, dead_zone_leak, attention_loss_weight, hidden_loss_weight, hidden_loss_share, scale_gradient, weight_decay, weight_decay_share,
            lr_scheduler_type, torch_compile: see `DistillationConfig`.
        attn_implementation: of transformers, for student and teacher; `None`: its default.
    """

    tokens: int = 1_000_000
    batch_size: int = 32
    micro_batch_size: int = 8
    learning_rate: float = 1e-3
    logits_loss_weight: float = 0.0
    quantization_warmup_share: float = 0.0
    ce_loss_weight: float = field(default=1.0, metadata=ADDED)
    dead_zone_leak: float = field(default=0.0, metadata=ADDED)
    attention_loss_weight: float = field(default=0.0, metadata=ADDED)
    hidden_loss_weight: float = field(default=0.0, metadata=ADDED)
    hidden_loss_share: float | None = field(default=None, metadata=ADDED)
    scale_gradient: bool = field(default=False, metadata=ADDED)
    weight_decay: float = field(default=0.01, metadata=ADDED)
    weight_decay_share: float = field(default=1.0, metadata=ADDED)
    lr_scheduler_type: str = field(default="cosine", metadata=ADDED)
    torch_compile: bool = field(default=False, metadata=ADDED)
    attn_implementation: str | None = field(default=None, metadata=ADDED)


@dataclass(frozen=True)
class FineTuneSettings:
    """Fine-tuning on the task, with or without a teacher.

    Args:
        method: `"sft"` (labels only) or `"distill"` (also the fine-tuned teacher's logits and attention relations).
        learning_rates: the best one is found with the first seed, by the metric on the evaluation split.
        options: further options of `DistillationConfig` (`"distill"` only).
        teacher: `"same"` (FP-SFT of this model) or `"large"` (FP-SFT of `--large_model`).
        other_examples: shuffle the training examples first, so that they are not those that FP-SFT was trained on with the same seed, but for
            the share of the training split that a run reads. With `ce_loss_weight: 0` in `options` no loss is
            taken on their labels; the answers stay part of the text that student and teacher read.
    """

    method: str = "sft"
    steps: int = 1000
    batch_size: int = 32
    micro_batch_size: int = 32
    learning_rates: tuple[float, ...] = (1e-4,)
    options: dict[str, Any] = field(default_factory=dict)
    teacher: str = "same"
    other_examples: bool = field(default=False, metadata=ADDED)


@dataclass(frozen=True)
class Arm:
    """One way to a student.

    Args:
        title: in tables.
        student: options of `BitNetConfig`; `None`: no student, the fine-tuning is of the model in full precision (with `from_teacher`
            it is FP-SFT that is fine-tuned once more, which is what a student made of it has had).
        calibrate: SubLN start values from activations.
        least_squares: start from the nearest codes and scales.
        warm_start: options of `WarmStartConfig` (some have other defaults here), and `tokens` (calibration text), `batch_size` (blocks a step), and
            `budget_share` (that share of the arm's token budget goes to the warm start's optimiser steps). `None`: none.
        from_teacher: the student is made of FP-SFT, not of the model as it came, and its start (calibration, warm start) reads the task's
            training examples instead of plain text; `tokens` are then those of whole examples, and `batch_size` examples.
        teacher_arm: an arm without a student whose model takes FP-SFT's place, as source and as teacher.
        pretrain, finetune: `None`: without that stage. A task is then measured on the student as it is.
    """

    title: str
    student: dict[str, Any] | None = field(default_factory=dict)
    calibrate: bool = True
    least_squares: bool = False
    warm_start: dict[str, Any] | None = None
    from_teacher: bool = False
    teacher_arm: str | None = None
    pretrain: PretrainSettings | None = None
    finetune: FineTuneSettings | None = None

    @property
    def warm_start_batch_size(self) -> int:
        """Blocks (or examples) that a step of the warm start reads."""
        return (self.warm_start or {}).get("batch_size", 4)

    def warm_start_config(self, seed: int = 0, steps_per_window: int | None = None) -> WarmStartConfig:
        """The options of `warm_start` that are `WarmStartConfig`'s.

        Args:
            steps_per_window: instead of what the options say, where the arm's share of a budget decides it.
        """
        options = {name: value for name, value in self.warm_start.items() if name not in _WARM_START_EXTRAS}
        if steps_per_window is not None:
            options["steps_per_window"] = steps_per_window
        return WarmStartConfig(seed=seed, **{**_WARM_START_DEFAULTS, **options})


@dataclass(frozen=True)
class BenchmarkSettings:
    """A whole benchmark.

    Args:
        name: of the result files.
        title: of the table.
        model_name: how results call the model; its folder is given on the command line.
        task: of `hf_bitdistill.data`, `docstring_summary` (see `docstrings.py`), or `None` for language modelling only.
        eval_examples: of the task's evaluation split, at most.
        max_length: of an example; `None`: the task's.
        seeds: of everything random.
        bf16: autocast.
        text: see there.
        full_precision: fine-tuning of the full-precision model (the teacher of `"distill"`).
        budgets: token budgets; every arm with pre-training runs once for each, and what its warm start reads counts.
        arms: by name.
    """

    name: str
    title: str
    model_name: str
    task: str | None = None
    eval_examples: int | None = None
    max_length: int | None = None
    seeds: tuple[int, ...] = (0,)
    bf16: bool = False
    text: TextSettings = TextSettings()
    full_precision: FineTuneSettings | None = None
    budgets: tuple[int, ...] = ()
    arms: dict[str, Arm] = field(default_factory=dict)


def _build(kind: type, values: dict[str, Any], where: str, **more: Any) -> Any:
    known = {f.name for f in dataclasses.fields(kind)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ValueError(f"{where}: unknown option {unknown[0]!r}; there are {', '.join(sorted(known))}")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return kind(**{**values, **more})


def load_settings(path: Path) -> BenchmarkSettings:
    """Read a configuration. `pretrain` and `finetune` at the top are defaults of those of the arms.

    Raises:
        ValueError: an unknown option, or an arm without its teacher, with the place where it is.
    """
    return build_settings(yaml.safe_load(path.read_text(encoding="utf-8")), str(path))


def build_settings(values: dict[str, Any], where: str) -> BenchmarkSettings:
    """Settings of a configuration's values, or of the `settings` that a result file holds.

    Args:
        where: the values are from, for errors.

    Raises:
        ValueError: as [`load_settings`].
    """
    values = dict(values)
    defaults = {name: values.pop(name, {}) for name in ("pretrain", "finetune")}
    kinds = {"pretrain": PretrainSettings, "finetune": FineTuneSettings}
    arms = {}
    for name, arm in values.pop("arms").items():
        arm, stages = dict(arm), {}
        for stage, kind in kinds.items():
            own = arm.pop(stage, None)
            stages[stage] = (
                None if own is None else _build(kind, {**defaults[stage], **own}, f"{where}: {name}.{stage}")
            )
        arms[name] = _build(Arm, arm, f"{where}: arms.{name}", **stages)
    full = values.pop("full_precision", None)
    if full is not None:
        full = _build(FineTuneSettings, {**defaults["finetune"], **full}, f"{where}: full_precision")
    for name, arm in arms.items():
        if arm.from_teacher and full is None:
            raise ValueError(f"{where}: arms.{name}: from_teacher needs full_precision, which makes the teacher")
        if arm.teacher_arm and getattr(arms.get(arm.teacher_arm), "student", ()) is not None:
            raise ValueError(f"{where}: arms.{name}: teacher_arm {arm.teacher_arm!r} is no arm with student: null")
        if arm.student is None and (
            arm.warm_start or arm.pretrain or not arm.finetune or arm.finetune.method != "sft"
        ):
            raise ValueError(f"{where}: arms.{name}: without a student there is only a finetune with method sft")
    text = _build(TextSettings, values.pop("text", {}), f"{where}: text")
    return _build(BenchmarkSettings, values, where, arms=arms, text=text, full_precision=full)
