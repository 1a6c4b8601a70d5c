"""Reads a text corpus and packs it into blocks of equal length for continual pre-training.

How text becomes blocks: every document is tokenized without special tokens and followed by one end-of-text token; the
documents are joined in their order and the stream is cut into blocks of exactly ``block_size`` tokens. A document may
therefore cross the border of two blocks, and a block may hold several documents. What remains at the end of a shard
(less than one block) is dropped unless it is asked for. A long document is tokenized in pieces (:mod:`.pieces`), so memory
does not grow with its length.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..files.data_formats import looks_like_path
from .data_files import CONTINUES, find_split_files, read_files
from .pieces import PieceCutter, calls, text_encoder


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

AnyDataset = TypeVar("AnyDataset", "Dataset", "IterableDataset")


def load_corpus(
    path_or_hub_id: str | PathLike,
    split: str = "train",
    *,
    streaming: bool = False,
    config_name: str | None = None,
    sample_by: str = "document",
) -> Dataset | IterableDataset:
    """Loads a text corpus from a file, a folder or the Hub.

    Args:
        path_or_hub_id: A file (jsonl, json, csv, txt, each also gzipped, or parquet; ``split`` is then not used), a
            folder with files named by split (``train.jsonl.gz``, ``train-00000-of-00008.parquet``), or a dataset id.
        split: The split to load.
        streaming: Read while iterating, in constant memory, instead of first converting everything to Arrow. Files
            become shards, so several files can be read by several workers.
        config_name: Configuration of a dataset on the Hub.
        sample_by: What one document is in a text file: ``"document"`` (the whole file; a long one is several rows, of which all
            but the last are true in the column ``continues_in_next_row``), ``"paragraph"`` (separated by empty lines) or ``"line"``.

    Returns:
        A ``Dataset``, or an ``IterableDataset`` if ``streaming``.

    Raises:
        FileNotFoundError: If a path does not exist, or the folder has no file for the split.
        ValueError: If a file's format is unknown, it is empty, or it cannot be parsed (streaming: when it is reached).
        ConnectionError: If the Hub cannot be reached.
    """
    from datasets import load_dataset

    path = Path(path_or_hub_id)
    if path.is_dir():
        files = find_split_files(path, [split])
    elif path.is_file():
        files = [path]
    elif looks_like_path(str(path_or_hub_id)):
        raise FileNotFoundError(f"there is no file or folder {path_or_hub_id}")
    else:
        try:
            return load_dataset(str(path_or_hub_id), config_name, split=split, streaming=streaming)
        except (ConnectionError, FileNotFoundError) as error:
            raise ConnectionError(
                f"{path_or_hub_id} is no local path and cannot be loaded from the Hub: {error}"
            ) from error
    return read_files(files, streaming=streaming, sample_by=sample_by)


def pack_corpus(
    dataset: AnyDataset,
    tokenizer: PreTrainedTokenizerBase,
    block_size: int,
    text_column: str = "text",
    *,
    append_eos: bool = True,
    bos_per_block: bool = False,
    drop_remainder: bool = True,
    parse_special_tokens: bool = False,
    batch_size: int = 256,
    num_proc: int | None = None,
) -> AnyDataset:
    """Tokenizes a text dataset and packs it into blocks of exactly ``block_size`` tokens.

    A streaming dataset gives a streaming dataset: nothing is read before it is iterated, and memory holds one batch of
    documents and one block, whatever the length of the corpus. Each shard of the input (usually a file) is a shard of
    the output and is packed on its own, so workers of a ``DataLoader`` and processes (``split_dataset_by_node``) share
    the shards between them without overlap. ``state_dict`` / ``load_state_dict`` resume at the exact block: finished
    shards are not read again, the unfinished shard is read and tokenized again up to the block. Shuffle the
    result, not the input: the input's shuffling is the same in every epoch.

    A map-style dataset gives a map-style dataset, written to the cache of ``datasets`` on disk in constant memory, and
    found there the next time.

    The result is deterministic: it depends on the documents, their order, the shards and the tokenizer only.

    Args:
        dataset: ``Dataset`` or ``IterableDataset`` with a column of texts. Documents without text (None, or empty)
            are left out, and a warning counts them. Shards should be much longer than a block, as the remainder of each is dropped.
        tokenizer: A fast tokenizer is several times faster, as it tokenizes a batch of documents at once.
        block_size: Tokens in a block, at least 2.
        text_column: The column with the texts.
        append_eos: Put the end-of-text token after each document.
        bos_per_block: Begin each block with the tokenizer's begin-of-text token; ``block_size - 1`` tokens of the
            stream follow.
        drop_remainder: Drop the last, shorter block of each shard. If False it is kept, if it has at least 2 tokens
            (one token alone predicts nothing).
        parse_special_tokens: Whether the name of a special token in a text, such as ``<s>``, becomes that token. By default it is text
            like any other.
        batch_size: Documents tokenized at once.
        num_proc: Map-style input only: processes, each of which packs a contiguous part as one shard.

    Returns:
        A dataset with the columns ``input_ids`` and ``labels``, equal lists of ``block_size`` int32 token ids. There
        is no attention mask: nothing is padding.

    Raises:
        ValueError: Missing column, missing end-of-text or begin-of-text token, ``block_size`` below 2, or no block at all
            (streaming: after the last document).
        TypeError: A text is not a string, or ``dataset`` is neither kind of dataset.
    """
    from datasets import Dataset, Features, IterableDataset, List, Value

    if not isinstance(dataset, (Dataset, IterableDataset)):
        raise TypeError(f"pack_corpus takes a Dataset or an IterableDataset, not {type(dataset).__name__}")
    if block_size < 2:
        raise ValueError(f"block_size must be at least 2, got {block_size}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    # A streaming dataset may not know its columns before it is read; the packer then checks the first batch.
    if dataset.column_names is not None and text_column not in dataset.column_names:
        raise ValueError(f"there is no column {text_column!r}; the dataset has {dataset.column_names}")
    if append_eos and tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end-of-text token; set one or pass append_eos=False")
    if bos_per_block and tokenizer.bos_token_id is None:
        raise ValueError("bos_per_block is set but the tokenizer has no begin-of-text token")

    num_shards = dataset.num_shards if isinstance(dataset, IterableDataset) else min(num_proc or 1, len(dataset))
    if num_shards < 1:
        raise ValueError("the corpus is empty")
    features = Features({"input_ids": List(Value("int32")), "labels": List(Value("int32"))})
    arguments = {
        "dataset": dataset,
        # The one list, which datasets divides among workers. Numbers and not sharded datasets: making those takes time
        # quadratic in their number, half a minute for 2,000 files.
        "shards": list(range(num_shards)),
        "num_shards": num_shards,
        "tokenizer": tokenizer,
        "block_size": block_size,
        "text_column": text_column,
        "eos": tokenizer.eos_token_id if append_eos else None,
        "bos": tokenizer.bos_token_id if bos_per_block else None,
        "drop_remainder": drop_remainder,
        "parse_special_tokens": parse_special_tokens,
        "batch_size": batch_size,
    }
    if isinstance(dataset, IterableDataset):
        return IterableDataset.from_generator(_packed_examples, features, arguments)
    # datasets cannot write an empty dataset, and says so in words that do not help.
    next(_packed_examples(**arguments), None)
    return Dataset.from_generator(
        _packed_examples, features, gen_kwargs=arguments, num_proc=num_shards if num_shards > 1 else None
    )


def _packed_examples(
    dataset: Dataset | IterableDataset,
    shards: Sequence[int],
    num_shards: int,
    tokenizer: PreTrainedTokenizerBase,
    block_size: int,
    text_column: str,
    eos: int | None,
    bos: int | None,
    drop_remainder: bool,
    parse_special_tokens: bool,
    batch_size: int,
) -> Iterator[dict[str, list[int]]]:
    options: dict[str, Any] = {
        "eos": eos,
        "bos": bos,
        "drop_remainder": drop_remainder,
        "parse_special_tokens": parse_special_tokens,
    }
    blocks, column = 0, TextColumn(text_column)
    for index in shards:
        shard = dataset.shard(num_shards=num_shards, index=index)
        # .iter, and not plain iteration: inside a DataLoader worker the latter would divide this shard, which is
        # already this worker's own, among the workers once more, and all but one would see nothing.
        texts = map(column.texts, shard.iter(batch_size=batch_size))
        for block in pack_texts(texts, tokenizer, block_size, **options):
            blocks += 1
            yield {"input_ids": block, "labels": block}
    if blocks == 0 and len(shards) == num_shards:  # (one of several workers may have nothing to do)
        without = f": {column.without_text()}" if column.skipped else ""
        raise ValueError(f"the corpus has fewer tokens than one block of {block_size}{without}")
    column.warn_of_skipped()


class TextColumn:
    """Takes the documents out of batches of rows, and counts them and those without text.

    Args:
        name: The column with the texts.
    """

    def __init__(self, name: str):
        self.name = name
        self.documents = self.skipped = 0

    def texts(self, batch: dict[str, list]) -> list[tuple[str, bool]]:
        """``(text, whether the next row continues it)`` of every row that has text."""
        if self.name not in batch:
            raise ValueError(f"there is no column {self.name!r}; the dataset has {list(batch)}")
        texts = batch[self.name]
        continues = batch.get(CONTINUES) or [False] * len(texts)
        for text in texts:
            if text is not None and not isinstance(text, str):
                raise TypeError(f"column {self.name!r} must hold str, found {type(text).__name__}")
        self.documents += continues.count(False)
        self.skipped += sum(not text for text in texts)
        return [(text, more) for text, more in zip(texts, continues, strict=True) if text]

    def without_text(self) -> str:
        return f"{self.skipped} of {self.documents} documents have no text in column {self.name!r}"

    def warn_of_skipped(self) -> None:
        if self.skipped:
            logger.warning("%s and were left out", self.without_text())


def pack_texts(
    batches: Iterable[list[tuple[str, bool]]],
    tokenizer: PreTrainedTokenizerBase,
    block_size: int,
    *,
    eos: int | None,
    bos: int | None = None,
    drop_remainder: bool = True,
    parse_special_tokens: bool = False,
) -> Iterator[list[int]]:
    """Packs texts into blocks of token ids, as :func:`pack_corpus` does.

    Args:
        batches: Lists of ``(text, continues)``: a document, or a part of one that goes on in the next text.
        tokenizer: Any tokenizer.
        block_size: Tokens in a block.
        eos: Token id after each document, or None.
        bos: Token id at the start of each block, or None.
        drop_remainder: Whether to drop the last block if it is shorter.
        parse_special_tokens: Whether names of special tokens in a text become tokens.

    Yields:
        Lists of ``block_size`` token ids (the last one shorter, at least 2, if it is kept).
    """
    encode = text_encoder(tokenizer, parse_special_tokens)
    head = [] if bos is None else [bos]
    take = block_size - len(head)
    buffer: list[int] = []
    has_tokens = False  # of the document so far
    cutter = PieceCutter(encode)
    for group in chain.from_iterable(map(calls, chain(map(cutter.cut, batches), [cutter.finish()]))):
        for (_, continues), ids in zip(group, encode([text for text, _ in group]), strict=True):
            buffer.extend(ids)
            has_tokens = has_tokens or bool(ids)
            if not continues:
                if has_tokens and eos is not None:
                    buffer.append(eos)
                has_tokens = False
        start = 0
        while len(buffer) - start >= take:
            yield head + buffer[start : start + take]
            start += take
        del buffer[:start]
    if not drop_remainder and len(head) + len(buffer) >= 2 and buffer:
        yield head + buffer
