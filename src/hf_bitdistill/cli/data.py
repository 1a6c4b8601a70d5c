"""`bitdistill data DATASET --model M`: what the model will see of a dataset.

What the data were taken for, examples with the trained tokens marked, lengths, labels, and what is left out and why: as text,
and with --output as an HTML page. Ends with status 1 where too much is left out.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from ..data.cleaning import MAX_LEFT_OUT
from ..data.sources import ROW_OF_TEXT


def make_parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description=__doc__, allow_abbrev=False)
    parser.add_argument("dataset", help="file, folder, folder of save_to_disk, or Hub id")
    parser.add_argument(
        "--model", required=True, help="folder or Hub id of the model, for its tokenizer and its context"
    )
    parser.add_argument("--task", help="what the rows are: one of the built-in tasks, or a task.yaml of your own")
    parser.add_argument("--text_columns", nargs="+", help="columns with the texts of a prompt")
    parser.add_argument("--label_column", help="column with the label")
    parser.add_argument("--label_words", nargs="+", help="the answer of each class, in the order of the classes")
    parser.add_argument("--max_length", type=int, help="tokens of an example; of plain text, of a block")
    parser.add_argument(
        "--turns", choices=["all", "last"], default="all", help="of the assistant's, which are learned"
    )
    parser.add_argument("--use_chat_template", action="store_true", help="put a task's prompts into the chat template")
    parser.add_argument("--samples", type=int, default=3, help="examples to show (default: 3)")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the examples shown and of a held-out part (default: 0)"
    )
    parser.add_argument("--config_name", help="configuration of a dataset on the Hub")
    parser.add_argument("--revision", help="of a dataset on the Hub")
    parser.add_argument("--train_split", help="name of the split to train on (default: train)")
    parser.add_argument("--eval_split", help="name of the split to measure on (default: validation, or like it)")
    parser.add_argument(
        "--sample_by",
        choices=["document", "paragraph", "line"],
        default=ROW_OF_TEXT,
        help=f"what a row of a .txt file is (default: {ROW_OF_TEXT})",
    )
    parser.add_argument(
        "--max_rows",
        type=int,
        default=20_000,
        help="rows of a split to look at, a random part; 0: all (default: 20000)",
    )
    parser.add_argument(
        "--max_left_out",
        type=float,
        default=MAX_LEFT_OUT,
        help=f"largest share of rows that may be left out (default: {MAX_LEFT_OUT})",
    )
    parser.add_argument("--output", type=Path, help="also write all of it as an HTML page")
    return parser


def run(argv: list[str], prog: str) -> None:
    options = make_parser(prog).parse_args(argv)
    for name in ("samples", "max_rows"):
        if getattr(options, name) < 0:
            raise ValueError(f"--{name} must not be negative, got {getattr(options, name)}")
    if not 0 <= options.max_left_out <= 1:
        raise ValueError(f"--max_left_out is a share, from 0 to 1, got {options.max_left_out}")
    named = [name for name in ("text_columns", "label_column", "label_words") if getattr(options, name)]
    if options.task and named:
        raise ValueError(f"--task says what the columns are: leave out --{named[0]}")
    from ..evaluation.batching import dataset_progress

    with dataset_progress(False):
        _show(options)


def _show(options: argparse.Namespace) -> None:
    from transformers import AutoConfig

    from ..data import get_task
    from ..data.batch_checks import context_length
    from ..data.cleaning import check_left_out
    from ..data.sources import load_examples
    from ..data.tokenizers import load_tokenizer
    from ..data.view import as_text, look_at, write_page
    from ..files.disk_room import check_writable
    from ..modeling.locate import find_model

    task = None if options.task is None else get_task(options.task)
    if options.output is not None:
        check_writable(options.output, is_file=True)
    path = find_model(options.model)
    tokenizer = load_tokenizer(path)
    examples = load_examples(
        options.dataset,
        config_name=options.config_name,
        revision=options.revision,
        train_split=options.train_split,
        validation_split=options.eval_split,
        seed=options.seed,
        sample_by=options.sample_by,
        skip_undecodable=True,
    )
    view = look_at(
        examples,
        tokenizer,
        options.model,
        task=task,
        text_columns=options.text_columns,
        label_column=options.label_column,
        label_words=options.label_words,
        max_length=options.max_length,
        context=context_length(AutoConfig.from_pretrained(path)),
        turns=options.turns,
        use_chat_template=options.use_chat_template,
        samples=options.samples,
        max_rows=options.max_rows,
        seed=options.seed,
    )
    print(as_text(view, color=sys.stdout.isatty()), flush=True)
    if options.output is not None:
        print(f"\n{write_page(view, options.output)}", flush=True)
    if view.held_out_from_train:  # parts of one split, of which a small one says little
        left_out = sum((split.left_out for split in view.splits), Counter())
        check_left_out(left_out, sum(split.looked_at for split in view.splits), view.source, options.max_left_out)
        return
    for split in view.splits:
        source = f"{view.source} ({split.name})"
        check_left_out(split.left_out, split.looked_at, source, options.max_left_out)
