"""`bitdistill distill`: distil a fine-tuned teacher into a ternary student on a task.

Takes all options of `DistillationConfig` (and so of transformers' `TrainingArguments`) besides its own.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from accelerate.utils.memory import clear_device_cache
from datasets import Dataset

from ..data import Task, build_dataset, collate, get_task, load_task_dataset
from ..data.preprocessing import Head
from ..data.tokenizers import load_tokenizer
from ..files.disk_room import check_writable
from ..files.model_folder import replace_model
from ..files.output_folder import check_output_dir
from ..hub.cards import CardFacts, write_card
from ..machine.environment import to
from ..machine.whole_models import whole_models
from ..modeling.locate import find_model
from ..modeling.sizes import bytes_by_kind
from ..options.options_parser import OptionsParser
from ..options.parsing import read, require
from ..training import DistillationConfig, DistillationTrainer, check_training_room, needs_teacher
from ..training.publishing import push_output
from ..training.reliability.reliable_trainer import check_one_folder
from .arguments import ModelArguments, StudentArguments, TaskArguments
from .models import CALIBRATION_ROWS, calibrate, load_model, load_student
from .pretrain import train_and_save
from .runs import check_no_training, check_options, keep_options, set_card_aside
from .scores import readable


@dataclass
class DistillArguments:
    """What is done after training."""

    pack_to: str | None = field(default=None, metadata={"help": "Also pack the student into this folder."})


def make_parser(prog: str) -> OptionsParser:
    kinds = (ModelArguments, StudentArguments, TaskArguments, DistillArguments, DistillationConfig)
    return OptionsParser(kinds, prog, __doc__, required=("task", "model_name_or_path"))


def run(argv: list[str], prog: str) -> None:
    model_arguments, student_arguments, arguments, after, training = read(make_parser(prog), argv)
    task = get_task(require(arguments.task, "task"))
    if needs_teacher(training):
        training.teacher_model_name_or_path = find_model(
            require(training.teacher_model_name_or_path, "teacher_model_name_or_path")
        )
    inputs = {
        "model_name_or_path": model_arguments.model_name_or_path,
        "teacher_model_name_or_path": training.teacher_model_name_or_path,
        "data_dir": arguments.data_dir,
    }
    check_output_dir(training.output_dir, inputs)
    if after.pack_to:
        check_output_dir(after.pack_to, {**inputs, "student": training.output_dir})
        check_no_training(after.pack_to)
    for folder in filter(None, (training.output_dir, after.pack_to)):
        check_writable(folder)
    check_one_folder(training)
    data = {"data_dir": arguments.data_dir}
    train = load_task_dataset(
        task, arguments.train_split, max_samples=arguments.max_train_samples, seed=training.seed, **data
    )
    # Without the training seed: a subset to evaluate on is the same one in every run and in `bitdistill evaluate`.
    validation = load_task_dataset(task, arguments.eval_split, max_samples=arguments.max_eval_samples, **data)
    check_options(training.output_dir, (model_arguments, student_arguments, arguments, training))
    facts = _train(model_arguments, student_arguments, arguments, training, task, train, validation)
    # The student and the teacher that were trained with are gone now, and with them what they held of the device.
    clear_device_cache(garbage_collection=True)
    _finish(model_arguments, arguments, after, training, task, validation, facts)


def _train(
    model_arguments: ModelArguments,
    student_arguments: StudentArguments,
    arguments: TaskArguments,
    training: DistillationConfig,
    task: Task,
    train: Dataset,
    validation: Dataset,
) -> CardFacts | None:
    """Make or load the student, train it, save it. Returns what the trainer knows for the card, in the process that writes it."""
    student, is_new = load_student(model_arguments, student_arguments, arguments.head, task, training)
    check_training_room(student, training)
    tokenizer = load_tokenizer(require(model_arguments.model_name_or_path, "model_name_or_path"))
    if student.config.pad_token_id is None:
        student.config.pad_token_id = tokenizer.pad_token_id
    build = {"tokenizer": tokenizer, **arguments.prompt_options()}
    # Before hours of training: the prompts of the evaluation after it must fit too.
    build_dataset(task, validation, train=task.is_predicted, **build)
    train = build_dataset(task, train, skip_overlong=True, **build)
    collator = collate(tokenizer, cast(Head, arguments.head))
    if is_new:
        # The same rows whatever the number of processes and the batch of each.
        size = CALIBRATION_ROWS
        rows = train.select(range(min(len(train), size * student_arguments.calibration_batches)))
        chunks = (rows.select(range(start, min(start + size, len(rows)))) for start in range(0, len(rows), size))
        calibrate(student, student_arguments, (collator(list(chunk)) for chunk in chunks), training)
    trainer = DistillationTrainer(
        model=student,
        args=training,
        train_dataset=train,
        eval_dataset=build_dataset(task, validation, skip_overlong=True, **build),
        data_collator=collator,
        processing_class=tokenizer,
    )
    if training.should_save:
        keep_options(training.output_dir, (model_arguments, student_arguments, arguments, training))
    train_and_save(trainer)
    facts = None
    if trainer.is_world_process_zero():
        trainer.create_model_card()
        facts = trainer.card_facts()
    trainer.accelerator.wait_for_everyone()
    return facts


def _finish(
    model_arguments: ModelArguments,
    arguments: TaskArguments,
    after: DistillArguments,
    training: DistillationConfig,
    task: Task,
    validation: Dataset,
    facts: CardFacts | None,
) -> None:
    """Pack and measure the student that was saved: the one in memory may be in shards, and computes in the precision of the
    training."""
    from ..data.fingerprint import fingerprint_rows
    from ..evaluation.score_record import Measurement, Record
    from ..modeling.pack import pack
    from ..verify import save_packed
    from .evaluate import measure

    saved = dataclasses.replace(model_arguments, model_name_or_path=training.output_dir)
    with whole_models(training):
        student = to(load_model(saved, arguments.head), training.device)
    tokenizer = load_tokenizer(training.output_dir)
    how = Measurement(
        task=task,
        data_dir=arguments.data_dir,
        split=arguments.eval_split,
        limit=arguments.max_eval_samples,
        **arguments.prompt_options(),
    )
    scores = measure(student, tokenizer, how, validation, arguments.eval_batch_size)
    if facts is None:
        return  # What is left is work of the first process; the others end.
    if after.pack_to:
        set_card_aside(after.pack_to)
        with replace_model(after.pack_to) as folder:
            save_packed(pack(student), folder, tokenizer)
    record = Record(scores, how, fingerprint_rows(validation), "bitdistill distill", "the trainable student")
    print(json.dumps(record.to_dict(), indent=2), flush=True)
    print(readable(scores), file=sys.stderr, flush=True)
    record.write(training.output_dir)
    write_card(Path(training.output_dir), dataclasses.replace(facts, record=record, scores=None))
    if after.pack_to:
        record.write(after.pack_to)
        title = Path(after.pack_to).resolve().name
        packed: dict[str, Any] = {
            "title": title,
            "repo": title,
            "push_format": "packed",
            "sizes": bytes_by_kind(after.pack_to),
        }
        write_card(Path(after.pack_to), dataclasses.replace(facts, record=record, scores=None, **packed))
    if training.push_to_hub:
        print(f"on the Hub: {push_output(training, 'Evaluation')}", flush=True)
