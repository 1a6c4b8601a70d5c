"""The order in which examples are read: batches of like lengths, the same again when a run goes on."""

from __future__ import annotations

import random
from itertools import islice
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from datasets import Dataset


def batch_order(lengths: list[int], batch_size: int, seed: int | str) -> list[int]:
    """An order of examples in which each batch holds examples of similar length, and the batches come in random order.

    Such batches hold much less padding. The Trainer's own `group_by_length` goes from long to short over and over, which
    shows in the loss and disturbs a training of a few hundred steps; and its order is another one after a checkpoint in the
    middle of an epoch.
    """
    rng = random.Random(seed)
    rows = list(range(len(lengths)))
    rng.shuffle(rows)
    window = 20 * batch_size
    batches = []
    for start in range(0, len(rows), window):
        similar = sorted(rows[start : start + window], key=lengths.__getitem__)
        batches += [similar[first : first + batch_size] for first in range(0, len(similar), batch_size)]
    # Only full batches may move: a short one in the middle would shift all after it.
    full = [batch for batch in batches if len(batch) == batch_size]
    rest = [row for batch in batches if len(batch) < batch_size for row in batch]
    rng.shuffle(full)
    return [*(row for batch in full for row in batch), *rest]


def in_order(dataset: Dataset, steps: int, batch_size: int, seed: int, skip: int = 0) -> Dataset:
    """What so many steps read one after the other (`train_sampling_strategy="sequential"`), epoch after epoch, each in an order of its own.

    Args:
        dataset: with `input_ids`.
        skip: steps that were read before.
    """
    lengths = [len(ids) for ids in dataset["input_ids"]]

    def rows():
        epoch = 0
        while True:
            yield from batch_order(lengths, batch_size, f"{seed} {epoch}")
            epoch += 1

    return dataset.select(list(islice(rows(), skip * batch_size, (skip + steps) * batch_size)))
