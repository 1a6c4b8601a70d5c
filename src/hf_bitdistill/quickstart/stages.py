"""The training stages of the quickstart, each a thin layer over a `Trainer`."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from .. import BitNetConfig, apply_bitnet, calibrate_sub_norm
from ..data import build_dataset, collate, pack_corpus
from ..distillation import TERMS, DistillationConfig, DistillationTrainer
from ..recipe.order import batch_order
from ..recipe.train import Arguments, Machine, training_arguments
from .settings import QuickstartSettings
from .task import TASK


# Hundreds of small steps: a loss every tenth is a curve.
_LOGGING_STEPS = 10


@dataclass
class StageLog:
    """What a training stage measured: its duration and, every few steps, its losses."""

    seconds: float
    tokens: int
    steps: list[int] = field(default_factory=list)
    losses: dict[str, list[float]] = field(default_factory=dict)


class _ProgressBar(TrainerCallback):
    """One bar with the current loss, in place of the Trainer's bar with a printed line per log."""

    def __init__(self, title: str, enabled: bool):
        self.title, self.enabled = title, enabled

    def on_train_begin(self, args, state, control, **kwargs):
        self.bar = tqdm(total=state.max_steps, desc=self.title, unit="step", disable=not self.enabled)

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update(1)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in (logs or {}):
            self.bar.set_postfix(loss=f"{float(logs['loss']):.3f}")

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()


def load_base(settings: QuickstartSettings) -> PreTrainedModel:
    """The full-precision base model, in float32: a CPU trains faster in it than in the bfloat16 of the file."""
    return AutoModelForCausalLM.from_pretrained(settings.base_model, dtype=torch.float32)


def new_student(settings: QuickstartSettings, sub_norm: str = "none") -> PreTrainedModel:
    """A ternary student of the base model, trainable."""
    return apply_bitnet(load_base(settings), BitNetConfig(sub_norm=sub_norm))


def _arguments(
    kind: type[Arguments], folder: str, settings: QuickstartSettings, steps: int, batch: int, rate: float, **more: Any
) -> Arguments:
    options = {
        "lr_scheduler_type": "linear",
        "adam_beta2": 0.999,
        "logging_steps": min(_LOGGING_STEPS, steps),
        "use_cpu": True,
        "remove_unused_columns": False,
        "include_num_input_tokens_seen": "non_padding",
    }
    return training_arguments(
        kind,
        Path(folder),
        Machine(bf16=False),
        steps=steps,
        batch=batch,
        micro=batch,
        rate=rate,
        seed=settings.seed,
        **{**options, **more},
    )


def _train(trainer: Trainer, title: str, settings: QuickstartSettings) -> StageLog:
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_ProgressBar(title, settings.progress))
    result = trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    log = StageLog(
        result.metrics["train_runtime"], trainer.state.num_input_tokens_seen, [entry["step"] for entry in entries]
    )
    for name in ("loss", *(f"loss_{term.name}" for term in TERMS)):
        if entries and name in entries[0]:
            log.losses[name] = [float(entry[name]) for entry in entries]
    trainer.model.eval()
    return log


def calibrate(student: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], block_size: int) -> int:
    """Start values for the student's SubLNs from a few blocks of text; returns the number of tokens used."""
    blocks = _stream(texts, tokenizer, block_size)
    batch = torch.tensor([row["input_ids"] for row, _ in zip(blocks, range(32), strict=False)])
    calibrate_sub_norm(student, [{"input_ids": batch}])
    return batch.numel()


def _stream(texts: list[str], tokenizer: PreTrainedTokenizerBase, block_size: int):
    # Streaming: only what is trained on gets tokenised, and nothing is cached on disk.
    return pack_corpus(Dataset.from_dict({"text": texts}).to_iterable_dataset(), tokenizer, block_size)


def pretrain(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    settings: QuickstartSettings,
) -> StageLog:
    """Continual pre-training of the ternary student on plain text, with the base model's logits as a second target."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = _arguments(
            DistillationConfig,
            folder,
            settings,
            settings.pretraining_steps,
            settings.pretraining_batch_size,
            settings.pretraining_learning_rate,
            train_sampling_strategy="random",
            temperature=1.0,
            logits_loss_weight=1.0,
            attention_loss_weight=0.0,
        )
        trainer = DistillationTrainer(
            student,
            teacher,
            arguments,
            data_collator=collate(tokenizer),
            train_dataset=_stream(texts, tokenizer, settings.block_size),
            processing_class=tokenizer,
            teacher_processing_class=tokenizer,
        )
        return _train(trainer, "continual pre-training", settings)


def fine_tune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: Dataset,
    settings: QuickstartSettings,
    learning_rate: float,
    title: str,
    teacher: PreTrainedModel | None = None,
) -> StageLog:
    """Fine-tuning on the task: on the labels, and with a teacher on its logits and attention relations too.

    All three ways come here with the same examples in the same order, the same number of steps and the same batches.
    """
    dataset = build_dataset(TASK, train, tokenizer, settings.max_length, skip_overlong=True)
    lengths = [len(ids) for ids in dataset["input_ids"]]
    dataset = dataset.select(batch_order(lengths, settings.batch_size, settings.seed))
    collator = collate(tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        common = (folder, settings, settings.fine_tuning_steps, settings.batch_size, learning_rate)
        if teacher is None:
            arguments = _arguments(TrainingArguments, *common)
            trainer = Trainer(model, arguments, data_collator=collator, train_dataset=dataset)
        else:
            arguments = _arguments(
                DistillationConfig,
                *common,
                temperature=settings.temperature,
                logits_loss_weight=settings.logits_loss_weight,
                attention_loss_weight=settings.attention_loss_weight,
                relation_heads=settings.relation_heads,
            )
            trainer = DistillationTrainer(
                model,
                teacher,
                arguments,
                data_collator=collator,
                train_dataset=dataset,
                processing_class=tokenizer,
                teacher_processing_class=tokenizer,
            )
        return _train(trainer, title, settings)
