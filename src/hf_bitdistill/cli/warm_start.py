"""`bitdistill warm-start`: make a ternary student of a model and train its blocks, a few layers at a time, to compute what
the model's own compute.

About a million tokens of any text. The result is an online student for `bitdistill pretrain` or `bitdistill distill`; the
errors before and after are in warm_start.json beside it. Takes all options of `WarmStartConfig` besides its own.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch

from .arguments import CorpusArguments, ModelArguments, StudentArguments, parse, require
from .models import calibrate, default_device, load_model, load_student, load_tokenizer


@dataclass
class WarmStartArguments:
    """What the warm start reads, and where the student goes."""

    output_dir: str | None = field(default=None, metadata={"help": "Folder for the student."})
    warm_start_tokens: int = field(default=2**20, metadata={"help": "Tokens of the text that are used."})
    batch_size: int = field(default=4, metadata={"help": "Blocks a step."})
    shuffle_buffer: int = field(default=10_000, metadata={"help": "Documents among which the text is shuffled."})


def run(argv: list[str], prog: str) -> None:
    from ..data import load_corpus, pack_corpus
    from ..warm_start import WarmStartConfig, warm_start

    kinds = (ModelArguments, StudentArguments, CorpusArguments, WarmStartArguments, WarmStartConfig)
    model_arguments, student_arguments, corpus, arguments, config = parse(kinds, argv, prog, __doc__)
    output = Path(require(arguments.output_dir, "output_dir"))
    require(corpus.corpus, "corpus")
    if arguments.batch_size < 1:
        raise ValueError(f"--batch_size must be at least 1, got {arguments.batch_size}")
    # Streaming: only what is used is tokenised.
    dataset = load_corpus(
        corpus.corpus,
        corpus.corpus_split,
        streaming=True,
        config_name=corpus.corpus_config,
        sample_by=corpus.sample_by,
    ).shuffle(seed=config.seed, buffer_size=arguments.shuffle_buffer)
    student, is_new = load_student(model_arguments, student_arguments)
    if not is_new:
        raise ValueError(
            f"{model_arguments.model_name_or_path} is a student already: start from its full-precision model"
        )
    tokenizer = load_tokenizer(model_arguments.model_name_or_path)
    blocks = pack_corpus(dataset, tokenizer, corpus.block_size, corpus.text_column)
    count = -(-arguments.warm_start_tokens // corpus.block_size)
    rows = [row["input_ids"] for row in islice(blocks, count)]
    if not rows:
        raise ValueError(f"{corpus.corpus} has fewer tokens than one block of {corpus.block_size}")
    size = arguments.batch_size
    batches = [{"input_ids": torch.tensor(rows[start : start + size])} for start in range(0, len(rows), size)]
    device = default_device()
    student = student.to(device)
    calibrate(student, student_arguments, batches[: student_arguments.calibration_batches])
    teacher = load_model(model_arguments).to(device)
    report = warm_start(student, teacher, batches, config, progress=True)
    student.save_pretrained(output)
    tokenizer.save_pretrained(output)
    (output / "warm_start.json").write_text(json.dumps(report.to_dict(), indent=2) + "\n")
    for window in report.windows:
        layers = f"layers {window.first_layer} to {window.last_layer}"
        print(f"{layers}: error {window.error_before:.4g} -> {window.error_after:.4g}", flush=True)
