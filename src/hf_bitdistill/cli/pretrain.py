"""`bitdistill pretrain`: continual pre-training of a ternary student on plain text, with the stock `Trainer`.

Takes all options of transformers' `TrainingArguments` besides its own.
"""

from __future__ import annotations

from itertools import islice

import torch
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from .arguments import CorpusArguments, ModelArguments, StudentArguments, parse, require
from .models import calibrate, load_student, load_tokenizer


def run(argv: list[str], prog: str) -> None:
    from ..data import collate, load_corpus, pack_corpus

    kinds = (ModelArguments, StudentArguments, CorpusArguments, TrainingArguments)
    model_arguments, student_arguments, corpus, training = parse(kinds, argv, prog, __doc__)
    require(corpus.corpus, "corpus")
    if corpus.streaming and training.max_steps <= 0:
        raise ValueError("--streaming needs --max_steps: the length of a streamed corpus is not known")
    dataset = load_corpus(
        corpus.corpus,
        corpus.corpus_split,
        streaming=corpus.streaming,
        config_name=corpus.corpus_config,
        sample_by=corpus.sample_by,
    )
    student, is_new = load_student(model_arguments, student_arguments)
    tokenizer = load_tokenizer(model_arguments.model_name_or_path)
    blocks = pack_corpus(dataset, tokenizer, corpus.block_size, corpus.text_column)
    if is_new:
        first = islice(iter(blocks), student_arguments.calibration_batches)
        calibrate(student, student_arguments, ({"input_ids": torch.tensor([row["input_ids"]])} for row in first))
    trainer = Trainer(
        model=student,
        args=training,
        train_dataset=blocks,
        data_collator=collate(tokenizer),
        processing_class=tokenizer,
    )
    trainer.train(resume_from_checkpoint=resume_point(training))
    trainer.save_model()
    trainer.save_state()


def resume_point(training: TrainingArguments) -> str | None:
    """The checkpoint to go on from: the one asked for, else the last one in the output folder, else none."""
    if training.resume_from_checkpoint:
        return training.resume_from_checkpoint
    from pathlib import Path

    return get_last_checkpoint(training.output_dir) if Path(training.output_dir).is_dir() else None
