"""`bitdistill evaluate`: a task's metric, or the perplexity on a text, of any model (student, packed, full precision)."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field

from transformers import PreTrainedModel

from ..atomic import write_text
from ..environment import default_device
from ..heads import head_is_quantized, quantize_head
from ..room import check_writable
from .arguments import CorpusArguments, ModelArguments, TaskArguments, parse
from .models import load_model, load_tokenizer
from .scores import readable


@dataclass
class EvaluateArguments:
    """What is evaluated, and where the result goes."""

    output_file: str | None = field(default=None, metadata={"help": "Also write the result here, as JSON."})
    max_blocks: int | None = field(default=None, metadata={"help": "Blocks of a perplexity. Default: all."})
    head_bits: int = field(
        default=16,
        metadata={"help": "8 or 4: round embedding and head of a packed model, on the CPU.", "choices": [16, 8, 4]},
    )


def run(argv: list[str], prog: str) -> None:
    kinds = (ModelArguments, TaskArguments, CorpusArguments, EvaluateArguments)
    model_arguments, task_arguments, corpus, output = parse(kinds, argv, prog, __doc__)
    if (task_arguments.task is None) == (corpus.corpus is None):
        raise ValueError("give --task for a task's metric, or --corpus for a perplexity")
    if output.output_file:
        check_writable(output.output_file, is_file=True)
    result = (
        _perplexity(model_arguments, corpus, output)
        if corpus.corpus
        else _task(model_arguments, task_arguments, output)
    )
    text = json.dumps(result, indent=2)
    print(text, flush=True)
    # Standard output stays JSON.
    print(readable(result), file=sys.stderr, flush=True)
    if output.output_file:
        write_text(output.output_file, text + "\n")


def _load(model_arguments: ModelArguments, head_bits: int, head: str = "causal_lm") -> PreTrainedModel:
    """The model, on an accelerator if there is one that can compute with it."""
    model = load_model(model_arguments, head)
    if head_bits != 16:
        quantize_head(model, head_bits)
    return model if head_is_quantized(model) else model.to(default_device())


def _task(model_arguments: ModelArguments, arguments: TaskArguments, output: EvaluateArguments) -> dict:
    from ..data import get_task, load_task_dataset
    from ..evaluation import evaluate_task

    task = get_task(arguments.task)
    dataset = load_task_dataset(
        task, arguments.eval_split, data_dir=arguments.data_dir, max_samples=arguments.max_eval_samples
    )
    model = _load(model_arguments, output.head_bits, arguments.head)
    tokenizer = load_tokenizer(model_arguments.model_name_or_path)
    return evaluate_task(
        model,
        tokenizer,
        task,
        dataset,
        batch_size=arguments.eval_batch_size,
        **arguments.prompt_options(),
    )


def _perplexity(model_arguments: ModelArguments, corpus: CorpusArguments, output: EvaluateArguments) -> dict:
    from ..data import load_corpus
    from ..data.files import CONTINUES
    from ..evaluation import perplexity

    dataset = load_corpus(
        corpus.corpus, corpus.corpus_split, config_name=corpus.corpus_config, sample_by=corpus.sample_by
    )
    if corpus.text_column not in dataset.column_names:
        raise ValueError(f"{corpus.corpus} has no column {corpus.text_column!r}; it has {dataset.column_names}")
    kept = [name for name in (corpus.text_column, CONTINUES) if name in dataset.column_names]
    texts = dataset.select_columns(kept).rename_columns({corpus.text_column: "text"})
    model = _load(model_arguments, output.head_bits)
    tokenizer = load_tokenizer(model_arguments.model_name_or_path)
    return perplexity(
        model,
        tokenizer,
        texts,
        block_size=corpus.block_size,
        max_blocks=output.max_blocks,
        parse_special_tokens=corpus.parse_special_tokens,
    )
