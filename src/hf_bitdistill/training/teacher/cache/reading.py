"""Reads a teacher's cache, in place of the teacher."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ....data.batches import PreparedBatch
from ....data.preprocessing import IGNORE_INDEX
from ....files.tensor_headers import CheckpointError
from ....modeling.model_heads import Head
from ...losses.targets import batch_targets
from ..teacher_scores import TopLogits
from .cache_files import INFO, CacheInfo, read_info
from .keys import DIGEST_BYTES, batch_examples, tokenizer_digest
from .tail import TEMPERATURES, check_temperature, tail_at


# Keys of a batch: the teacher's most likely tokens at the labelled positions of each row, `[B, L, k]`, the rest is filler.
_IDS, _LOG_PROBS, _TAILS = "teacher_ids", "teacher_log_probs", "teacher_tails"


class TeacherCache:
    """A teacher's most likely tokens at the labelled positions of the examples it was made of.

    Args:
        folder: that [`cache_teacher_logits`] wrote.

    Raises:
        FileNotFoundError: there is no cache.
        ValueError: it is not complete.
        CheckpointError: it is damaged.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self.info: CacheInfo = read_info(folder)
        if not self.info.complete:
            raise ValueError(
                f"{folder} is not complete: run bitdistill cache-teacher (cache_teacher_logits) again with the same options"
            )
        if self.info.temperatures != list(TEMPERATURES):
            raise CheckpointError(f"{self.folder / INFO}: its tail is kept at other temperatures than {TEMPERATURES}.")
        self._files = list(self.info.shards)
        self._open: dict[int, Any] = {}
        self._pid = os.getpid()
        keys, places = [], []
        for number, name in enumerate(self._files):
            shard = self._shard(number)
            fingerprints, starts = shard.get_tensor("fingerprints").numpy(), shard.get_tensor("starts").numpy()
            if fingerprints.shape != (self.info.shards[name], DIGEST_BYTES) or len(starts) != len(fingerprints) + 1:
                raise CheckpointError(f"{self.folder / name}: its index does not fit {INFO}.")
            keys.append(np.ascontiguousarray(fingerprints).view("<u8"))
            shards = np.full(len(fingerprints), number)
            places.append(np.stack([shards, starts[:-1], starts[1:]], axis=1))
        all_keys, all_places = np.concatenate(keys), np.concatenate(places)
        order = np.argsort(all_keys[:, 0], kind="stable")
        self._first, self._second, self._places = all_keys[order, 0], all_keys[order, 1], all_places[order]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def _shard(self, number: int) -> Any:
        if self._pid != os.getpid():
            # A worker of a data loader maps the files itself.
            self._open, self._pid = {}, os.getpid()
        if number not in self._open:
            file = self.folder / self._files[number]
            try:
                self._open[number] = safe_open(str(file), "pt")
            except FileNotFoundError:
                raise CheckpointError(f"{file} is missing.") from None
            except SafetensorError as error:
                raise CheckpointError(f"{file} is damaged ({error}).") from None
        return self._open[number]

    def check(self, head: Head, width: int, processing_class: Any, temperature: float) -> None:
        """Refuse a student that the cache is not for.

        Args:
            head: of the student.
            width: columns of its logits.
            processing_class: its tokenizer, if there is one.
            temperature: of the loss.

        Raises:
            ValueError: naming the difference.
        """
        info = self.info
        if info.head != head:
            raise ValueError(f"the student has a {head} head and the teacher of {self.folder} a {info.head} head")
        mine = tokenizer_digest(processing_class)
        if mine is not None and info.tokenizer_digest is not None and mine != info.tokenizer_digest:
            raise ValueError(
                f"the student's tokenizer is not the one of the teacher of {self.folder}: their tokens differ"
            )
        if head == "sequence_classification" and info.vocab_size != width:
            raise ValueError(f"the student has {width} labels and the teacher of {self.folder} {info.vocab_size}")
        if info.vocab_size > width:
            raise ValueError(
                f"the student's logits have {width} columns and {self.folder} is of {info.vocab_size}: write it with vocab_size={width}"
            )
        if info.vocab_size < width and (mine is None or info.tokenizer_digest is None):
            raise ValueError(
                f"the student's vocabulary has {width} rows and {self.folder} is of {info.vocab_size}: give both their processing_class, to "
                "show that the tokenizers are the same"
            )
        if info.k < info.vocab_size:
            check_temperature(temperature)

    def _find(self, fingerprint: bytes) -> np.ndarray | None:
        first, second = np.frombuffer(fingerprint, "<u8")
        place = int(np.searchsorted(self._first, first))
        while place < len(self._first) and self._first[place] == first:
            if self._second[place] == second:
                return self._places[place]
            place += 1
        return None

    def add(self, batch: Mapping[str, Any], head: Head) -> PreparedBatch:
        """The batch with the teacher's most likely tokens.

        Args:
            batch: prepared.
            head: of the student.

        Raises:
            ValueError: an example is not in the cache.
        """
        rows: list[list[tuple[int, int, int]]] = [[] for _ in range(len(batch["input_ids"]))]
        for example in batch_examples(batch, batch_targets(batch, head)):
            place = self._find(example.fingerprint)
            if place is None:
                raise ValueError(
                    f"an example of the batch (row {example.row}, {example.count} label(s), it begins with the tokens {example.tokens}) is "
                    f"not in the teacher's cache {self.folder}: write the cache of the rows that are trained (and evaluated) on, with the "
                    "same prompts, lengths and labels"
                )
            shard, start, stop = map(int, place)
            rows[example.row].append((shard, start, stop))
        info = self.info
        width = max((sum(stop - start for _, start, stop in row) for row in rows), default=0)
        device = batch["input_ids"].device
        shape = (len(rows), width)
        found = {_IDS: torch.zeros(*shape, info.k, dtype=torch.int32)}
        found[_LOG_PROBS] = torch.zeros(*shape, info.k, dtype=getattr(torch, info.dtype))
        if info.k < info.vocab_size:
            found[_TAILS] = torch.zeros(*shape, len(TEMPERATURES))
        names = {_IDS: "ids", _LOG_PROBS: "log_probs", _TAILS: "tails"}
        for row, places in enumerate(rows):
            at = 0
            for number, start, stop in places:
                for key, value in found.items():
                    value[row, at : at + stop - start] = self._shard(number).get_slice(names[key])[start:stop]
                at += stop - start
        return PreparedBatch({**batch, **{key: value.to(device) for key, value in found.items()}})

    def top_logits(self, batch: Mapping[str, Any], targets: Tensor, head: Head, temperature: float) -> TopLogits:
        """The teacher's distributions at the labelled positions of a batch.

        Args:
            batch: prepared; of [`add`], or without it.
            targets: of the batch, aligned with the logits.
            head: of the student.
            temperature: of the loss.
        """
        if _IDS not in batch:
            batch = self.add(batch, head)
        counts = (targets != IGNORE_INDEX).reshape(len(targets), -1).sum(1)
        is_real = torch.arange(batch[_IDS].shape[1], device=counts.device) < counts[:, None]
        tail = None
        if _TAILS in batch:
            tail = tail_at(batch[_TAILS][is_real], self.info.vocab_size - self.info.k, temperature)
        return TopLogits(batch[_IDS][is_real].long(), batch[_LOG_PROBS][is_real].float() / temperature, tail)


class CachedCollator:
    """A collator whose batches hold what the teacher said of them."""

    def __init__(self, collator: Callable[[list], Any], cache: TeacherCache, head: Head):
        self.collator, self.cache, self.head = collator, cache, head

    def __call__(self, examples: list) -> Any:
        batch = self.collator(examples)
        has_labels = isinstance(batch, Mapping) and batch.get("labels") is not None
        return self.cache.add(batch, self.head) if has_labels else batch

    def __getattr__(self, name: str) -> Any:
        # Options of the collator itself, which Trainer and others ask for.
        if name.startswith("__") or name == "collator":
            raise AttributeError(name)
        return getattr(self.collator, name)
