"""`bitdistill pretrain`: continual pre-training of a ternary student on plain text.

With --teacher_model_name_or_path (usually the model the student was made of) the student also learns the teacher's
next-token distributions. Takes all options of `PretrainingConfig` (and so of transformers' `TrainingArguments`) besides its
own.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    PreTrainedModel,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME

from ..data.tokenizers import load_tokenizer
from ..files.disk_room import check_writable
from ..files.output_folder import check_output_dir
from ..files.training_checkpoints import checkpoint_at, damage
from ..machine.environment import to
from ..machine.whole_models import whole_models
from ..modeling.locate import find_model
from ..options.options_parser import OptionsParser
from ..options.parsing import read, require
from ..training import TEACHER_LOSS_WEIGHTS, PretrainingConfig, ReliableTrainer, check_training_room
from ..training.pretraining import make_trainer
from .arguments import ModelArguments, StreamedCorpusArguments, StudentArguments
from .models import calibrate, load_student
from .runs import check_options, keep_options, kept_options


def make_parser(prog: str) -> OptionsParser:
    kinds = (ModelArguments, StudentArguments, StreamedCorpusArguments, PretrainingConfig)
    return OptionsParser(kinds, prog, __doc__, required=("corpus", "model_name_or_path"))


def run(argv: list[str], prog: str) -> None:
    from ..data import load_corpus, pack_corpus
    from ..data.batch_checks import ModelLimits

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
    student, is_new = load_student(model_arguments, student_arguments, training=training)
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
        source = _kept(training, checkpoint)
        _take_weights(trainer, source)
        # The one of the end says how long it took; one that a kill left behind is made of the checkpoint's.
        trainer.state = _read_state(training.output_dir, like=_read_state(checkpoint))
    else:
        if checkpoint and trainer.is_world_process_zero():
            print(_going_on(training, checkpoint), flush=True)
        trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    trainer.save_state()


def _take_weights(trainer: ReliableTrainer, source: str) -> None:
    """Give the model the weights of a finished one, in the processes that save it. What DeepSpeed's ZeRO-3 has made of the model while it was
    loaded, parts without values, takes no weights: a whole model takes its place, and where nothing is saved one without weights."""
    model, training = trainer.model, trainer.args
    in_parts = any(hasattr(weight, "ds_id") for weight in model.parameters())
    with whole_models(training):
        if training.should_save:
            saved = type(model).from_pretrained(source, dtype=model.dtype)
        elif in_parts:
            with torch.device("meta"):
                saved = type(model)(model.config)
        else:
            return
    if not in_parts:
        model.load_state_dict(saved.state_dict())
    else:
        saved.config.name_or_path = model.config.name_or_path
        trainer.model = trainer.model_wrapped = model = saved
    if training.should_save:
        to(model, training.device).eval()


def _kept(training: TrainingArguments, checkpoint: str) -> str:
    """The checkpoint whose model a finished training leaves: its last one, or its best one where that was asked for.

    Raises:
        ValueError: the best one is gone or damaged.
    """
    step = _read_state(checkpoint).best_global_step
    if not training.load_best_model_at_end or step is None:
        return checkpoint
    place = checkpoint_at(Path(checkpoint).parent, step)
    if place is None or damage(place):
        raise ValueError(
            f"the best checkpoint of this training, that of step {step}, is gone or damaged: the model in {training.output_dir} is left as it is"
        )
    return str(place)


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
