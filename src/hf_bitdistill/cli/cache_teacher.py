"""`bitdistill cache-teacher`: write a teacher's most likely tokens for the examples of a task or the blocks of a corpus, once.

`bitdistill distill` and `bitdistill pretrain` read them with --teacher_cache FOLDER instead of a teacher. Give the options of task
or corpus (and --seed) that the training will have: an example that it reads and the cache does not hold stops it. A call that was
interrupted goes on where it stopped. Under `torchrun` the processes share the files; each has the whole teacher.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from datasets import concatenate_datasets

from ..data import build_dataset, get_task, load_corpus, load_task_dataset, pack_corpus
from ..data.tokenizers import load_tokenizer
from ..files.disk_room import check_writable, size_text
from ..files.model_folder import check_output
from ..machine.environment import default_device, to
from ..machine.whole_models import whole_models
from ..options.options_parser import OptionsParser
from ..options.parsing import read, require
from .arguments import CorpusArguments, ModelArguments, TaskArguments
from .models import load_model


@dataclass
class CacheArguments:
    """What is written, and where."""

    output_dir: str | None = field(default=None, metadata={"help": "Folder of the cache."})
    top_k: int = field(default=64, metadata={"help": "Tokens kept a labelled position; all others are one sum."})
    cache_dtype: str = field(
        default="float16",
        metadata={"help": "Dtype of their log-probabilities.", "choices": ["float16", "bfloat16"]},
    )
    vocab_size: int | None = field(
        default=None, metadata={"help": "Leading columns of the logits that count, if the student has fewer."}
    )
    cache_eval_split: bool = field(
        default=False, metadata={"help": "Also the evaluation split, for an evaluation loss during training."}
    )
    batch_size: int = field(default=8, metadata={"help": "Examples a forward."})
    shard_examples: int = field(default=1024, metadata={"help": "Examples a file."})
    seed: int = field(default=42, metadata={"help": "The training's --seed, which chooses --max_train_samples."})


def make_parser(prog: str) -> OptionsParser:
    kinds = (ModelArguments, TaskArguments, CorpusArguments, CacheArguments)
    return OptionsParser(kinds, prog, __doc__, required=("output_dir", "model_name_or_path", "task or corpus"))


def run(argv: list[str], prog: str) -> None:
    from ..training.teacher.cache import cache_teacher_logits

    model_arguments, task, corpus, arguments = read(make_parser(prog), argv)
    output = require(arguments.output_dir, "output_dir")
    if (task.task is None) == (corpus.corpus is None):
        raise ValueError("give one of --task and --corpus")
    name = require(model_arguments.model_name_or_path, "model_name_or_path")
    check_output(output, model=name)
    check_writable(output)
    tokenizer = load_tokenizer(name)
    head = task.head if task.task else "causal_lm"
    with whole_models():
        teacher = to(load_model(model_arguments, head), default_device()).eval()
    if teacher.config.pad_token_id is None:
        teacher.config.pad_token_id = tokenizer.pad_token_id
    rows = _task_rows(task, arguments, tokenizer) if task.task else _blocks(corpus, tokenizer)
    info = cache_teacher_logits(
        teacher,
        rows,
        output,
        tokenizer,
        k=arguments.top_k,
        dtype=arguments.cache_dtype,
        vocab_size=arguments.vocab_size,
        batch_size=arguments.batch_size,
        shard_examples=arguments.shard_examples,
        share=True,
    )
    bytes_each = info.k * 6 + (4 * len(info.temperatures) if info.k < info.vocab_size else 0)
    print(
        f"{output}: the {info.k} most likely of {info.vocab_size} at {info.positions} positions of {info.examples} examples, "
        f"{size_text(info.positions * bytes_each)}",
        flush=True,
    )


def _task_rows(options: TaskArguments, arguments: CacheArguments, tokenizer: Any) -> Any:
    """As `bitdistill distill` reads them."""
    task = get_task(require(options.task, "task"))
    data: dict[str, Any] = {"data_dir": options.data_dir}
    parts = [
        load_task_dataset(
            task, options.train_split, max_samples=options.max_train_samples, seed=arguments.seed, **data
        )
    ]
    if arguments.cache_eval_split:
        parts.append(load_task_dataset(task, options.eval_split, max_samples=options.max_eval_samples, **data))
    build = {"tokenizer": tokenizer, "skip_overlong": True, **options.prompt_options()}
    built = [build_dataset(task, part, **build) for part in parts]
    return built[0] if len(built) == 1 else concatenate_datasets(built)


def _blocks(corpus: CorpusArguments, tokenizer: Any) -> Any:
    """As `bitdistill pretrain` reads them."""
    dataset = load_corpus(
        require(corpus.corpus, "corpus"),
        corpus.corpus_split,
        config_name=corpus.corpus_config,
        sample_by=corpus.sample_by,
    )
    return pack_corpus(
        dataset, tokenizer, corpus.block_size, corpus.text_column, parse_special_tokens=corpus.parse_special_tokens
    )
