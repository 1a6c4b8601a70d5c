"""`bitdistill pretrain`: continual pre-training of a ternary student on plain text.

With --teacher_model_name_or_path (usually the model the student was made of) the student also learns the teacher's
next-token distributions. Takes all options of `PretrainingConfig` (and so of transformers' `TrainingArguments`) besides its
own.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from transformers import (
    AutoConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME

from ..data.streams import Stream
from ..distillation import (
    TEACHER_LOSS_WEIGHTS,
    DistillationTrainer,
    PretrainingConfig,
    ReliableTrainer,
    check_one_device,
    check_training_room,
    training_callbacks,
)
from ..environment import to
from ..layers import warn_of_16_bit_weights
from ..locate import find_model
from ..room import check_writable
from .arguments import CorpusArguments, ModelArguments, StudentArguments, read, require
from .models import calibrate, load_student, load_tokenizer
from .options_parser import OptionsParser
from .runs import check_options, check_output_dir, keep_options, kept_options


def make_parser(prog: str) -> OptionsParser:
    kinds = (ModelArguments, StudentArguments, CorpusArguments, PretrainingConfig)
    return OptionsParser(kinds, prog, __doc__, required=("corpus", "model_name_or_path"))


def run(argv: list[str], prog: str) -> None:
    from ..data import load_corpus, pack_corpus
    from ..data.checks import ModelLimits

    model_arguments, student_arguments, corpus, training = read(make_parser(prog), argv)
    require(corpus.corpus, "corpus")
    if corpus.streaming and training.max_steps <= 0:
        raise ValueError("--streaming needs --max_steps: the length of a streamed corpus is not known")
    check_writable(training.output_dir)
    if training.teacher_model_name_or_path:
        training.teacher_model_name_or_path = find_model(training.teacher_model_name_or_path)
    check_output_dir(
        training.output_dir,
        {
            "model_name_or_path": model_arguments.model_name_or_path,
            "teacher_model_name_or_path": training.teacher_model_name_or_path,
            "corpus": corpus.corpus,
        },
    )
    deciding = (model_arguments, student_arguments, corpus, training)
    check_options(training.output_dir, deciding)
    # The weight of the logits loss is on by default: without a teacher it means nothing.
    for name in TEACHER_LOSS_WEIGHTS:
        if name != "logits_loss_weight" and getattr(training, name) and not training.teacher_model_name_or_path:
            raise ValueError(f"--{name} needs --teacher_model_name_or_path")
    dataset = load_corpus(
        corpus.corpus,
        corpus.corpus_split,
        streaming=corpus.streaming,
        config_name=corpus.corpus_config,
        sample_by=corpus.sample_by,
    )
    student, is_new = load_student(model_arguments, student_arguments)
    ModelLimits.of({"model": student}).check_length(corpus.block_size, "a block (--block_size)")
    check_training_room(student, training)
    tokenizer = load_tokenizer(require(model_arguments.model_name_or_path, "model_name_or_path"))
    blocks = pack_corpus(
        dataset, tokenizer, corpus.block_size, corpus.text_column, parse_special_tokens=corpus.parse_special_tokens
    )
    if is_new:
        first = islice(iter(blocks), student_arguments.calibration_batches)
        rows = ({"input_ids": torch.tensor([row["input_ids"]])} for row in first)
        calibrate(student, student_arguments, rows, training)
    if training.should_save:
        keep_options(training.output_dir, deciding)
    train_and_save(make_trainer(student, training, blocks, tokenizer))


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
    from ..data.checks import CheckedCollator, ModelLimits

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


def train_and_save(trainer: ReliableTrainer) -> None:
    """Train, from the checkpoint asked for, or else from the newest whole one in the output folder, or else from the start.

    A run that was finished before is not continued: its model is only loaded and saved again, and its state with it.

    Raises:
        CheckpointError: the checkpoint asked for is damaged.
        ValueError: the checkpoint is of a student with other options, or it is of another folder, where nothing says which, and already the
            end.
    """
    training = trainer.args
    checkpoint = trainer.find_checkpoint(training.resume_from_checkpoint or True)
    if checkpoint:
        _check_same_student(trainer.model, checkpoint)
    if checkpoint and _is_finished(training, checkpoint):
        folder = Path(checkpoint).resolve().parent
        if folder != Path(training.output_dir).resolve() and kept_options(folder) is None:
            raise ValueError(
                f"{checkpoint} is the end of this training, and with which options it was trained is not known: there is nothing to train, "
                "and what a card would say of it is not known either"
            )
        print(f"{checkpoint} is the end of this training: nothing left to do", flush=True)
        saved = type(trainer.model).from_pretrained(checkpoint, dtype=trainer.model.dtype)
        trainer.model.load_state_dict(saved.state_dict())
        to(trainer.model, training.device).eval()
        # The one of the end says how long it took; one that a kill left behind is made of the checkpoint's.
        trainer.state = _read_state(training.output_dir, like=_read_state(checkpoint))
    else:
        if checkpoint and trainer.is_world_process_zero():
            print(_going_on(training, checkpoint), flush=True)
        trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    trainer.save_state()


def _going_on(training: TrainingArguments, checkpoint: str) -> str:
    """From where a training goes on, and to where."""
    state = _read_state(checkpoint)
    if training.max_steps > 0:
        end = f"of {training.max_steps}"
    else:
        end = f"(epoch {state.epoch or 0:.2f} of {training.num_train_epochs:g})"
    return f"going on from {checkpoint}: step {state.global_step} {end} is done"


def _read_state(folder: str, like: TrainerState | None = None) -> TrainerState:
    """The state in a folder, or `like` where there is none of the same step."""
    try:
        state = TrainerState.load_from_json(str(Path(folder) / TRAINER_STATE_NAME))
    except (OSError, ValueError, TypeError):
        if like is None:
            raise
        return like
    return state if like is None or state.global_step == like.global_step else like


def _check_same_student(student: PreTrainedModel, checkpoint: str) -> None:
    there = getattr(AutoConfig.from_pretrained(checkpoint), "quantization_config", None) or {}
    here = student.config.quantization_config.to_dict()
    different = sorted(name for name in here if name in there and there[name] != here[name])
    if different:
        raise ValueError(
            f"{checkpoint} belongs to a student with another {', '.join(different)}: give another output_dir"
        )


def _is_finished(training: TrainingArguments, checkpoint: str) -> bool:
    state = _read_state(checkpoint)
    if training.max_steps > 0:
        return state.global_step >= training.max_steps
    return (state.epoch or 0) >= training.num_train_epochs
