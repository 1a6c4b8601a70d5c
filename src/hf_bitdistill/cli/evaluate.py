"""`bitdistill evaluate`: a task's metric, or the perplexity on a text, of any model (student, packed, full precision).

`bitdistill evaluate STUDENT` needs no options: the folder knows the task, the prompt and the data that the student was measured
on, and whether the score is still the same is said. Options win over what the folder knows. The processes of a launcher (`torchrun`,
`accelerate launch`) share the rows and give the numbers of one process.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import CONFIG_NAME

from ..data.tokenizers import load_tokenizer
from ..files.atomic import write_text
from ..files.disk_room import check_writable
from ..files.model_folder import EVALUATION_FILE
from ..machine import processes
from ..machine.environment import default_device, to
from ..machine.whole_models import whole_models
from ..modeling.lm_head import head_is_quantized, quantize_head
from ..modeling.locate import find_model
from ..options.options_parser import OptionsParser
from ..options.parsing import given_options, read, require
from .arguments import CorpusArguments, ModelArguments, TaskArguments
from .models import load_model
from .runs import kept_options
from .scores import agreement, readable


if TYPE_CHECKING:
    from datasets import Dataset

    from ..data.preprocessing import Head
    from ..evaluation.score_record import Measurement, Record


@dataclass
class EvaluateArguments:
    """What is evaluated, and where the result goes."""

    dataset: str | None = field(
        default=None,
        metadata={"help": "File, folder or Hub id of the rows, as of bitdistill run. Default: what the folder knows."},
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a dataset on the Hub."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Revision of a dataset on the Hub."})
    output_file: str | None = field(default=None, metadata={"help": "Also write the result here, as JSON."})
    max_blocks: int | None = field(default=None, metadata={"help": "Blocks of a perplexity. Default: all."})
    head_bits: int = field(
        default=16,
        metadata={"help": "8 or 4: round embedding and head of a packed model, on the CPU.", "choices": [16, 8, 4]},
    )


# Options that say which rows; those that say how a model is asked have the same names here and in a record.
_DATA = ("dataset", "data_dir")
_ASKING = ("max_length", "head", "use_chat_template")
# Options that only rows of a dataset or only a perplexity reads, and those that only a training does.
_OF_ROWS = (
    *_ASKING,
    "data_dir",
    "dataset_config",
    "dataset_revision",
    "eval_split",
    "max_eval_samples",
    "eval_batch_size",
)
_OF_TEXT = (
    "corpus_config",
    "corpus_split",
    "text_column",
    "sample_by",
    "block_size",
    "parse_special_tokens",
    "max_blocks",
)
_OF_TRAINING = ("train_split", "max_train_samples")
_SAME_DATA = "Give every machine the same data: a folder that they share, or the same copy."


def make_parser(prog: str) -> OptionsParser:
    kinds = (ModelArguments, TaskArguments, CorpusArguments, EvaluateArguments)
    return OptionsParser(
        kinds, prog, __doc__, "MODEL | CONFIG.yaml", model_first=True, required=("model_name_or_path",)
    )


def run(argv: list[str], prog: str) -> None:
    parser = make_parser(prog)
    model_arguments, task_arguments, corpus, output = read(parser, argv)
    given = given_options(parser, argv)
    if corpus.corpus is not None and given & {"task", "dataset"}:
        raise ValueError("give --task or --dataset for a task's metric, or --corpus for a perplexity, not both")
    _check_read(corpus.corpus is not None, given)
    if output.output_file:
        check_writable(output.output_file, is_file=True)
    path = find_model(require(model_arguments.model_name_or_path, "model_name_or_path (or the model as first word)"))
    if corpus.corpus is not None:
        result, said = _perplexity(model_arguments, corpus, output), ""
        _check_not_a_record(output.output_file, path, "perplexity")
    else:
        from ..evaluation.score_record import find_record

        record = find_record(path)
        how = _measurement(path, record, task_arguments, output, given)
        _check_not_a_record(output.output_file, path, how.task.name if how.task is not None else how.kind)
        result, said = _measure(model_arguments, how, record, output, task_arguments.eval_batch_size, given)
    text = json.dumps(result, indent=2)
    print(text, flush=True)
    # Standard output stays JSON.
    if processes.is_first():
        print("\n".join(filter(None, (readable(result), said))), file=sys.stderr, flush=True)
    if output.output_file:
        processes.on_first(lambda: write_text(output.output_file, text + "\n"), f"writing {output.output_file}")


def _check_read(of_text: bool, given: set[str]) -> None:
    """Refuse options that what is measured does not read.

    Args:
        of_text: a perplexity is measured.

    Raises:
        ValueError: names them.
    """
    when, others = ("with --corpus", _OF_ROWS) if of_text else ("without --corpus", _OF_TEXT)
    for names, why in (
        (_OF_TRAINING, "by evaluate: they are of a training"),
        (others, f"{when}; leave it out"),
    ):
        unread = sorted(given.intersection(names))
        if unread:
            raise ValueError(f"--{', --'.join(unread)}: not read {why}")


def _measurement(
    model: str, record: Record | None, arguments: TaskArguments, output: EvaluateArguments, given: set[str]
) -> Measurement:
    """What the folder knows, with the options in its place.

    Raises:
        ValueError: Neither says what is measured.
    """
    from ..data import get_task
    from ..evaluation.score_record import Measurement

    known = None if record is None else record.how
    task = None if arguments.task is None else get_task(arguments.task)
    if known is not None and task is not None and task != known.task:
        known = None
    if known is None and task is None and output.dataset is None:
        corpus = (kept_options(model) or {}).get("corpus")
        text = f" ({corpus} is what it was trained on; --corpus_split validation is not)" if corpus else ""
        before = f" (it was measured on {record.what} by an earlier version, which did not keep how)" if record else ""
        raise ValueError(
            f"{model} does not know what it is measured on{before}: give --task (with --data_dir or --dataset for local data), --dataset "
            f"alone for data whose columns say what they are, or --corpus for a perplexity{text}"
        )
    changes: dict[str, Any] = {name: getattr(arguments, name) for name in _ASKING if name in given}
    if "max_eval_samples" in given:
        changes["limit"] = arguments.max_eval_samples
    if known is None or given.intersection(_DATA):
        changes |= {
            "dataset": output.dataset,
            "data_dir": arguments.data_dir,
            "dataset_config": output.dataset_config,
            "dataset_revision": output.dataset_revision,
            "found_split": None,
            "local": False,
        }
        if output.dataset is None:
            changes["split"] = arguments.eval_split
        elif arguments.data_dir is not None:
            raise ValueError("give --dataset or --data_dir, not both")
    if "eval_split" in given:
        changes |= {"split": arguments.eval_split, "found_split": None}
    if known is not None and known.dataset is not None:
        changes |= {name: getattr(output, name) for name in ("dataset_config", "dataset_revision") if name in given}
    if known is not None:
        return dataclasses.replace(known, **changes)
    if task is not None:
        return Measurement(task=task, **changes)
    return _recognized(Measurement("text", **changes))


def _recognized(how: Measurement) -> Measurement:
    """The kind of a dataset that nothing else says anything of."""
    from ..data.recognition import recognize
    from ..data.sources import load_rows_to_measure

    loaded = load_rows_to_measure(
        str(how.dataset),
        config_name=how.dataset_config,
        revision=how.dataset_revision,
        split=how.split,
        skip_undecodable=True,
    )
    rows = loaded.rows if loaded.whole is None else loaded.whole
    found = recognize(rows, str(how.dataset), config_name=how.dataset_config)
    column = found.columns[0] if found.kind in ("messages", "text") else None
    return dataclasses.replace(how, kind=found.kind, task=found.task, column=column)


def _load(model_arguments: ModelArguments, head_bits: int, head: str = "causal_lm") -> PreTrainedModel:
    """The model, on an accelerator if there is one that can compute with it."""
    with whole_models():
        model = load_model(model_arguments, head)
    if head_bits != 16:
        quantize_head(model, head_bits)
    return model if head_is_quantized(model) else to(model, default_device())


def _measure(
    model_arguments: ModelArguments,
    how: Measurement,
    record: Record | None,
    output: EvaluateArguments,
    batch_size: int,
    given: set[str],
) -> tuple[dict[str, Any], str]:
    """The result, and what it says of the one that was recorded."""
    from ..data.fingerprint import fingerprint_rows
    from ..evaluation.score_record import Record

    tokenizer = load_tokenizer(str(model_arguments.model_name_or_path))
    known = record if record is not None and record.how is not None else None
    rows, how = _rows(model_arguments, how, known, tokenizer, given)
    contents = processes.agree("the rows to measure on", fingerprint_rows(rows), _SAME_DATA)
    model = _load(model_arguments, output.head_bits, how.head)
    scores = measure(model, tokenizer, how, rows, batch_size)
    form = "" if output.head_bits == 16 else f", embedding and head in {output.head_bits} bits"
    new = Record(scores, how, contents, "bitdistill evaluate", f"the model in {model.dtype}{form}")
    return new.to_dict(), "" if known is None else agreement(known, new)


def _rows(
    model_arguments: ModelArguments,
    how: Measurement,
    known: Record | None,
    tokenizer: PreTrainedTokenizerBase,
    given: set[str],
) -> tuple[Dataset, Measurement]:
    from ..evaluation.rows import load_rows

    # A file that is given is measured on as a whole, unless it is the one that a part was held out of.
    same_as = None if "dataset" not in given else "none" if known is None else known.rows
    try:
        return load_rows(how, tokenizer, same_as, keep_limit="max_eval_samples" in given)
    except (FileNotFoundError, ConnectionError) as error:
        if given.intersection(_DATA) or known is None or known.how is None or known.how.task != how.task:
            raise
        raise FileNotFoundError(
            f"the data that {model_arguments.model_name_or_path} was measured on, {how.place}, cannot be found: give --dataset (or "
            f"--data_dir) and where it is now, or another --task ({error})"
        ) from error


def measure(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, how: Measurement, rows: Dataset, batch_size: int = 16
) -> dict[str, Any]:
    """The scores of a model on rows of `evaluation.rows.load_rows`, which the processes of a launcher share: all of them call it."""
    from .. import evaluation
    from ..evaluation.answers import answer_scores

    with evaluation.share_rows():
        if how.kind != "task" or how.task is None:
            return {"task": how.kind, **answer_scores(model, tokenizer, rows, batch_size)}
        return evaluation.evaluate_task(
            model,
            tokenizer,
            how.task,
            rows,
            batch_size=batch_size,
            max_length=how.max_length,
            head=cast("Head", how.head),
            use_chat_template=how.use_chat_template,
        )


def _check_not_a_record(output_file: str | None, model: str, what: str) -> None:
    """Refuse a result in the place of what a model's folder knows of itself: of another model, or of another task.

    Raises:
        ValueError: says where else.
    """
    from ..evaluation.score_record import read_record

    if output_file is None or Path(output_file).name != EVALUATION_FILE:
        return
    folder = Path(output_file).expanduser().resolve().parent
    if not (folder / CONFIG_NAME).is_file():
        return
    record = read_record(folder)
    own = Path(model).is_dir() and folder.samefile(model)
    if own and (record is None or record.what == what):
        return
    whose = f"of its own task, {record.what}" if own and record is not None else "of the model there"
    raise ValueError(
        f"--output_file {output_file} is the record {whose}: give another name, such as {folder / f'evaluation-{what}.json'}"
    )


def _perplexity(model_arguments: ModelArguments, corpus: CorpusArguments, output: EvaluateArguments) -> dict:
    from ..data import load_corpus
    from ..data.data_files import CONTINUES
    from ..evaluation import perplexity, share_rows

    dataset = load_corpus(
        require(corpus.corpus, "corpus"),
        corpus.corpus_split,
        config_name=corpus.corpus_config,
        sample_by=corpus.sample_by,
    )
    if corpus.text_column not in dataset.column_names:
        raise ValueError(f"{corpus.corpus} has no column {corpus.text_column!r}; it has {dataset.column_names}")
    kept = [name for name in (corpus.text_column, CONTINUES) if name in dataset.column_names]
    texts = dataset.select_columns(kept).rename_columns({corpus.text_column: "text"})
    model = _load(model_arguments, output.head_bits)
    tokenizer = load_tokenizer(require(model_arguments.model_name_or_path, "model_name_or_path"))
    with share_rows():
        return perplexity(
            model,
            tokenizer,
            texts,
            block_size=corpus.block_size,
            max_blocks=output.max_blocks,
            parse_special_tokens=corpus.parse_special_tokens,
        )
