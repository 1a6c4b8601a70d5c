"""Streamed datasets in pass after pass, dealt out to the processes and `DataLoader` workers that read them.

Every worker of every process is a *reader*. With at least as many shards as readers, each reader has every n-th shard to itself. With fewer,
readers share shards: each reads all rows of its shards and hands out every n-th of them. Which reader has what is the same in every pass, and a
reader begins its next pass when its own part is at an end, without waiting for the others: so in each of its passes every row of the dataset
comes exactly once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice
from math import gcd
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from .._compat import is_split_by_process


if TYPE_CHECKING:
    from datasets import IterableDataset

POSITION = "stream_position"
"""Key of a row, and of a batch, that says where its reader is after it: a [`Position`]."""


class Position(NamedTuple):
    """Where a reader of a stream is.

    Attributes:
        reader: which one of all.
        rows: it has handed out since the start.
        passes: it has finished.
        shard: of the order of this pass, the one that it reads (always 0 where the part of a reader is not read shard by shard).
        row: of this shard (or part), the next one.
    """

    reader: int
    rows: int = 0
    passes: int = 0
    shard: int = 0
    row: int = 0


@dataclass(frozen=True)
class Readers:
    """Who reads a stream.

    Attributes:
        processes: that read different rows.
        workers: of each process, at least 1.
    """

    processes: int = 1
    workers: int = 1

    @property
    def count(self) -> int:
        return self.processes * self.workers

    def of_process(self, process: int) -> range:
        """The numbers of its readers."""
        return range(process * self.workers, (process + 1) * self.workers)


class Stream(torch.utils.data.IterableDataset):
    """A `datasets.IterableDataset` in pass after pass without an end; a training reads as many rows as its `max_steps` say.

    `DistillationTrainer` makes one of a streamed dataset that it is given. Iterated by hand, or by other trainers, it is read by one process.

    Args:
        dataset: streamed. One that is split by node already (`split_dataset_by_node`) is not split again.
        seed: chooses the order of the shards in each pass, where `by_shard`.
        by_shard: read one shard after the other, in another order in every pass. A place in the stream is found again without reading the
            shards before it. For shards that are independent, as those of `pack_corpus`; not for a dataset that is shuffled through a buffer,
            which mixes its shards. Without it a reader's part is read as `datasets` reads it (`set_epoch` is called for each pass), and a
            place is found again by reading the pass from its beginning.

    Raises:
        TypeError: `dataset` is not streamed.
    """

    def __init__(self, dataset: IterableDataset, seed: int = 0, by_shard: bool = False):
        from datasets import IterableDataset

        if not isinstance(dataset, IterableDataset):
            raise TypeError(f"a Stream is of a datasets.IterableDataset, not of a {type(dataset).__name__}")
        self.dataset, self.seed, self.by_shard = dataset, seed, by_shard

    @property
    def column_names(self) -> list[str] | None:
        return self.dataset.column_names

    @property
    def shards(self) -> int:
        return self.dataset.num_shards

    @property
    def is_split(self) -> bool:
        """Whether each process was given a dataset of its own part."""
        return is_split_by_process(self.dataset)

    def sharers(self, readers: Readers) -> int:
        """How many readers read the same rows and hand out a part of them; 1 where each has shards of its own."""
        among = readers.workers if self.is_split else readers.count
        return 1 if self.shards >= among else among // gcd(self.shards, among)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = torch.utils.data.get_worker_info()
        readers = Readers() if worker is None else Readers(1, worker.num_workers)
        for row in self.rows(Position(0 if worker is None else worker.id), readers):
            del row[POSITION]
            yield row

    def rows(self, start: Position, readers: Readers, skip: int = 0) -> Iterator[dict[str, Any]]:
        """What one reader hands out, without an end.

        Args:
            start: where it begins.
            readers: all of them.
            skip: rows that it reads and does not hand out, from `start` on.

        Yields:
            Rows, each with its [`POSITION`].

        Raises:
            ValueError: there is no row for this reader in a whole pass.
        """
        among = readers.workers if self.is_split else readers.count
        own = start.reader % among
        turns = self.sharers(readers)
        groups = among // turns
        group, turn = own % groups, own // groups
        rows, first, row = start.rows, start.shard, start.row
        for passes in count(start.passes):
            before = None if first or row else rows
            parts = self._order(passes, group, groups)
            for shard in range(first, len(parts)):
                for index, content in islice(enumerate(self._read(parts[shard], passes)), row, None):
                    if index % turns == turn:
                        rows += 1
                        if rows - start.rows > skip:
                            yield {**content, POSITION: Position(start.reader, rows, passes, shard, index + 1)}
                row = 0
            first = 0
            if rows == before:
                raise ValueError(
                    f"reader {own + 1} of {among} has no row of the stream, of {self.shards} shard(s): take fewer processes or "
                    "dataloader workers, or more data"
                )

    def _order(self, passes: int, group: int, groups: int) -> Sequence[tuple[int, int]]:
        """`(number of parts, index)` of the parts that a group of readers reads in a pass, one after the other."""
        if not self.by_shard:
            return [(groups, group)]
        generator = np.random.default_rng([self.seed, passes, group])
        return [(self.shards, int(shard)) for shard in generator.permutation(range(group, self.shards, groups))]

    def _read(self, part: tuple[int, int], passes: int) -> Iterator[dict[str, Any]]:
        # A dataset of its own, because workers share the number of the pass of the one that they were given.
        dataset = self.dataset.shard(num_shards=part[0], index=part[1], contiguous=False)
        if not self.by_shard:
            dataset.set_epoch(passes)
        # .iter, and not plain iteration, which would divide it among the workers once more.
        for batch in dataset.iter(batch_size=1):
            yield {name: values[0] for name, values in batch.items()}

    def shared(
        self, readers: Readers, starts: Mapping[int, Position] | None = None, first: int = 0, skip: Sequence[int] = ()
    ) -> IterableDataset:
        """As a streamed dataset whose shards are the readers (two each), so that `accelerate` and `DataLoader` deal these out.

        Args:
            readers: how many there will be.
            starts: by the readers' numbers, where they begin; those that are missing at the beginning.
            first: the worker whose batch comes first (a `DataLoader` takes one of each in turn).
            skip: for each worker, rows that it reads and does not hand out.
        """
        from datasets import IterableDataset

        turned = [(worker + first) % readers.workers for worker in range(readers.workers)]
        # Each twice: older versions of accelerate deal shards out only if there are more of them than processes. A reader never comes to its second.
        arguments = {
            # The one list, which is divided.
            "numbers": [
                process * readers.workers + worker for process in range(readers.processes) for worker in 2 * turned
            ],
            "stream": self,
            "readers": readers,
            "starts": dict(starts or {}),
            "skip": tuple(skip) or (0,) * readers.workers,
        }
        return IterableDataset.from_generator(_rows_of, gen_kwargs=arguments)


def _rows_of(
    numbers: Sequence[int],
    stream: Stream,
    readers: Readers,
    starts: Mapping[int, Position],
    skip: Sequence[int],
) -> Iterator[dict[str, Any]]:
    number = numbers[0]
    yield from stream.rows(starts.get(number, Position(number)), readers, skip[number % readers.workers])
