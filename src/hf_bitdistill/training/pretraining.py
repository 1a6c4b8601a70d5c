"""The trainer of continual pre-training: with a teacher, or with the stock objective."""

from __future__ import annotations

from typing import Any

from datasets import Dataset, IterableDataset
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..data.streams import Stream
from ..nn import warn_of_16_bit_weights
from .callbacks import training_callbacks
from .config import PretrainingConfig, check_one_device
from .reliability.reliable_trainer import ReliableTrainer
from .student_model import check_evaluation_dtype
from .trainer import DistillationTrainer


def make_trainer(
    student: PreTrainedModel,
    training: PretrainingConfig,
    blocks: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    teacher: PreTrainedModel | None = None,
) -> ReliableTrainer:
    """The trainer of continual pre-training: with a teacher (an object, or named in `training`) it is a
    [`DistillationTrainer`], without one `Trainer` with the losses of the model itself.

    Args:
        blocks: of `pack_corpus`. Streamed, the files of the corpus come in another order in every pass (by `data_seed` or `seed`), and the blocks
            of a file in theirs.

    Raises:
        ValueError: several devices in one process, or an option that the stock `Trainer` would not heed.
    """
    from ..data import collate
    from ..data.batch_checks import CheckedCollator, ModelLimits

    if isinstance(blocks, IterableDataset):
        blocks = Stream(blocks, training.seed if training.data_seed is None else training.data_seed, by_shard=True)
    options: dict[str, Any] = {
        "model": student,
        "args": training,
        "train_dataset": blocks,
        "data_collator": collate(tokenizer),
        "processing_class": tokenizer,
    }
    if teacher is not None or training.teacher_model_name_or_path or training.teacher_cache:
        return DistillationTrainer(teacher_model=teacher, **options)
    check_one_device(training)
    _check_stock_objective(student, training)
    warn_of_16_bit_weights(student)
    check_evaluation_dtype(student, training)
    options["data_collator"] = CheckedCollator(
        options["data_collator"], ModelLimits.of({"model": student}), "causal_lm"
    )
    trainer = ReliableTrainer(**options)
    for callback in training_callbacks(training):
        trainer.add_callback(callback)
    return trainer


def _check_stock_objective(student: PreTrainedModel, training: PretrainingConfig) -> None:
    """The objective without a teacher is the one with it, less the teacher's term: refuse what would be dropped without a word."""
    if training.ce_loss_weight != 1:
        raise ValueError(
            f"--ce_loss_weight {training.ce_loss_weight} weighs the tokens against a teacher: name one, or leave it out"
        )
    if training.label_smoothing_factor and getattr(student.config.get_text_config(), "output_router_logits", False):
        raise ValueError(
            "--label_smoothing_factor makes Trainer drop the loss of a mixture's routers: set output_router_logits to false in the "
            "model's config, or name a teacher"
        )
