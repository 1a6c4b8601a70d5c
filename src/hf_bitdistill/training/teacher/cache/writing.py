"""Writes a teacher's cache."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers.utils import logging

from ....data.batch_checks import ModelLimits, check_batch, check_examples
from ....data.batches import prepare_batch
from ....data.preprocessing import IGNORE_INDEX, collate
from ....files.atomic import file_aside, lock_folder
from ....machine import agreement, processes
from ....modeling.model_heads import Head, model_head
from ...batch_layout import batch_layouts, check_layout
from ...losses.targets import batch_targets
from ..teacher_model import forward_parameters, model_inputs
from .cache_files import INFO, CacheInfo, read_info, shard_name
from .keys import Example, batch_examples, tokenizer_digest
from .tail import TEMPERATURES, tail_masses


logger = logging.get_logger(__name__)

_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
# Float32 distributions over the vocabulary that exist at the same time.
_CHUNK_TOKENS = 128


def cache_teacher_logits(
    teacher: nn.Module,
    dataset: Any,
    output_dir: str | os.PathLike,
    processing_class: Any = None,
    *,
    k: int = 64,
    dtype: str = "float16",
    vocab_size: int | None = None,
    data_collator: Callable[[list], Mapping[str, Any]] | None = None,
    batch_size: int = 8,
    shard_examples: int = 1024,
    progress: bool = True,
    share: bool = False,
) -> CacheInfo:
    """Write what `DistillationConfig.teacher_cache` needs of a teacher: of every labelled position the k most likely tokens, their
    log-probabilities at temperature 1, and what all others weigh together (see `teacher_cache.tail`).

    A call that was interrupted goes on where it stopped: whole shards are kept. One on a complete cache only compares the examples. Of several
    processes that call it with one folder, one writes; the others wait, and compare. With `share` they write together.

    Args:
        teacher: on the device where it is to compute; its head decides what a position is.
        dataset: rows with `input_ids` and `labels`, as they are trained on; map-style or a list. Evaluation rows may be among them.
        output_dir: a new folder, or one of an earlier call.
        processing_class: the tokenizer: pads, and is compared with the student's later.
        k: tokens kept. At the number of columns or above it all are.
        dtype: of the log-probabilities: `"float16"` or `"bfloat16"`.
        vocab_size: leading columns of the logits that count, if the student's are fewer. Default: all.
        data_collator: default: `hf_bitdistill.data.collate(processing_class, head)`. It must give the labels that the training's gives.
        batch_size: examples a forward.
        shard_examples: examples a file, and what an interruption costs at most.
        progress: show a bar.
        share: the processes of a launcher share the files among them. All of them call it then, with the same teacher, rows and options. The
            files are those of one process.

    Returns:
        What the cache says about itself.

    Raises:
        ValueError: an option is out of range, examples do not fit the teacher, or the folder holds something else.
        ProcessesError: the processes do not have alike what they must, or another one failed (`share`).
        FloatingPointError: the teacher's logits are not finite.
        OSError: the folder cannot be written.
    """
    head = model_head(teacher)
    if dtype not in _DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}")
    for name, value in {"k": k, "batch_size": batch_size, "shard_examples": shard_examples}.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    columns = _columns(teacher, head)
    if vocab_size is not None and not 1 <= vocab_size <= columns:
        raise ValueError(f"vocab_size must be between 1 and the teacher's {columns} columns, got {vocab_size}")
    if data_collator is None:
        if processing_class is None:
            raise ValueError("a teacher's cache needs a processing_class (the tokenizer), or a data_collator")
        data_collator = collate(getattr(processing_class, "tokenizer", processing_class), head)
    if not hasattr(dataset, "__len__"):
        raise ValueError("a teacher's cache is of a dataset with a known number of rows, not of a stream")
    info = CacheInfo(
        teacher=getattr(teacher.config, "name_or_path", None) or None,
        teacher_digest=_digest(teacher),
        tokenizer_digest=tokenizer_digest(processing_class),
        head=head,
        k=min(k, vocab_size or columns),
        dtype=dtype,
        vocab_size=vocab_size or columns,
        temperatures=list(TEMPERATURES),
        examples=len(dataset),
        shard_examples=shard_examples,
    )
    writer = _Writer(teacher, head, info, data_collator, batch_size)
    if share and processes.world_size() > 1:
        return _write_together(Path(output_dir), info, dataset, writer, progress)
    lock = _claim(Path(output_dir), info)
    try:
        shards = range(_shards(info))
        return _finish(Path(output_dir), info, _write(Path(output_dir), dataset, writer, shards, progress))
    finally:
        _release(lock)


def _write_together(folder: Path, info: CacheInfo, dataset: Any, writer: _Writer, progress: bool) -> CacheInfo:
    """As the processes of a launcher. The first one has the lock."""
    remedy = "Start every process with the same command, the same teacher and the same data."
    settings = agreement.Alike("the caches that processes are to write", info.settings(), remedy)
    agreement.check_alike([agreement.versions(), settings, agreement.rows({"the examples": dataset})])
    agreement.check_shared(folder, "Give a folder that all machines share.")
    lock: int | None = None

    def claim() -> None:
        nonlocal lock
        lock = _claim(folder, info)

    try:
        processes.on_first(claim, f"claiming {folder}")
        shards = processes.share(_shards(info))
        shown = progress and processes.is_first()
        mine = processes.together(lambda: _write(folder, dataset, writer, shards, shown), "caching a teacher")
        written = processes.collect(mine, _shards(info))
        return processes.from_first(lambda: _finish(folder, info, written), "caching a teacher")
    finally:
        _release(lock)


def _claim(folder: Path, info: CacheInfo) -> int | None:
    """Wait until nobody writes there. Returns a lock on the folder, which says what it is for."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file")
    folder.mkdir(parents=True, exist_ok=True)
    lock = lock_folder(folder, wait=True)
    try:
        _begin(folder, info)
    except BaseException:
        _release(lock)
        raise
    return lock


def _release(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)


def _shards(info: CacheInfo) -> int:
    return -(-info.examples // info.shard_examples)


def _write(
    folder: Path, dataset: Any, writer: _Writer, shards: Sequence[int], progress: bool
) -> list[tuple[int, int]]:
    """Of each shard: its examples with a label, and their positions."""
    found, count, size = [], len(dataset), writer.info.shard_examples
    starts = [shard * size for shard in shards]
    with tqdm(total=sum(min(size, count - start) for start in starts), desc="teacher", disable=not progress) as bar:
        for shard, start in zip(shards, starts, strict=True):
            rows = [dataset[row] for row in range(start, min(start + size, count))]
            found.append(writer.shard(rows, start, folder / shard_name(shard)))
            bar.update(len(rows))
    return found


def _finish(folder: Path, info: CacheInfo, written: Sequence[tuple[int, int]]) -> CacheInfo:
    """Say what was written."""
    for shard, (count, positions) in enumerate(written):
        if count:
            info.shards[shard_name(shard)] = count
        info.positions += positions
    if not info.positions:
        raise ValueError("no example has a label: there is nothing to cache")
    info.complete = True
    info.write(folder)
    return info


def _columns(teacher: Any, head: Head) -> int:
    """Of its logits."""
    if head == "sequence_classification":
        return teacher.config.num_labels
    output = teacher.get_output_embeddings()
    weight = getattr(output, "weight", None)
    return teacher.config.get_text_config().vocab_size if weight is None else weight.shape[0]


def _digest(model: nn.Module) -> str:
    digest = xxhash.xxh3_128()
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _begin(folder: Path, info: CacheInfo) -> None:
    """Claim a folder, or find that an earlier call with the same settings has begun it."""
    if any(folder.iterdir()):
        if not (folder / INFO).is_file():
            raise ValueError(f"{folder} holds something else than a teacher's cache: give another folder")
        mine, theirs = info.settings(), read_info(folder).settings()
        different = [f"{name} ({theirs[name]}, now {mine[name]})" for name in mine if mine[name] != theirs[name]]
        if different:
            raise ValueError(f"{folder} holds a cache with another {', '.join(different)}: give another folder")
        return
    info.write(folder)


class _Writer:
    def __init__(self, teacher: nn.Module, head: Head, info: CacheInfo, collator: Callable, batch_size: int):
        self.teacher, self.head, self.info, self.collator, self.batch_size = teacher, head, info, collator, batch_size
        self.device = next(teacher.parameters()).device
        self.limits = ModelLimits.of({"teacher": teacher}, head)
        self.tried: set[str] = set()

    def shard(self, rows: list, first: int, file: Path) -> tuple[int, int]:
        """Write a shard unless it is there. Returns its examples with a label, and their positions.

        Raises:
            ValueError: it is there, and of other examples.
        """
        # Like lengths together: little is padded.
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]["input_ids"]))
        groups = [order[at : at + self.batch_size] for at in range(0, len(order), self.batch_size)]
        batches, examples = [], []
        for group in groups:
            chosen = [dict(rows[row]) for row in group]
            check_examples(chosen, self.head)
            batch = prepare_batch(self.collator(chosen))
            check_batch(batch, self.limits, self.head)
            batches.append(batch)
            examples.append(batch_examples(batch, batch_targets(batch, self.head)))
        flat = list(chain.from_iterable(examples))
        if not flat:
            return 0, 0
        keys = np.stack([np.frombuffer(example.fingerprint, np.uint8) for example in flat])
        positions = sum(example.count for example in flat)
        if file.is_file():
            if not np.array_equal(_fingerprints(file), keys):
                raise ValueError(
                    f"{file} is of other examples than rows {first} to {first + len(rows) - 1} of this dataset: give another folder"
                )
            return len(flat), positions
        parts = [self._top(batch, found) for batch, found in zip(batches, examples, strict=True) if found]
        tensors = {name: torch.cat([part[name] for part in parts]).contiguous() for name in parts[0]}
        counts = torch.tensor([0, *(example.count for example in flat)])
        tensors |= {"starts": counts.cumsum(0), "fingerprints": torch.from_numpy(keys)}
        with file_aside(file) as aside:
            save_file(tensors, str(aside), metadata={"format": "pt"})
        return len(flat), positions

    @torch.no_grad()
    def _top(self, batch: Any, examples: list[Example]) -> dict[str, Tensor]:
        teacher = self.teacher.eval()
        batch = type(batch)(
            {key: value.to(self.device) if isinstance(value, Tensor) else value for key, value in batch.items()}
        )
        for layout in batch_layouts(batch):
            if layout not in self.tried:
                self.tried.add(layout)
                check_layout(teacher, layout, batch, "teacher")
        targets = batch_targets(batch, self.head)
        columns = None
        if self.head == "causal_lm":
            columns = (targets != IGNORE_INDEX).any(0).nonzero().squeeze(-1)
            targets = targets[:, columns]
        outputs = teacher(**model_inputs(teacher, batch, columns))
        logits = outputs["logits"] if isinstance(outputs, Mapping) else outputs[0]
        if columns is not None and "logits_to_keep" not in forward_parameters(teacher):
            logits = logits[:, columns]
        parts: dict[str, list[Tensor]] = {"ids": [], "log_probs": [], "tails": []}
        selected = logits[targets != IGNORE_INDEX]
        for chunk in selected.split(_CHUNK_TOKENS):
            log_probs = chunk[:, : self.info.vocab_size].float().log_softmax(-1)
            top, ids = log_probs.topk(self.info.k, dim=-1)
            if not bool(torch.isfinite(top).all()):
                raise FloatingPointError(
                    f"the teacher's logits are not finite (NaN or infinity) in an example that begins with {examples[0].tokens}, or in "
                    "one of its batch"
                )
            parts["ids"].append(ids.int().cpu())
            parts["log_probs"].append(top.to(_DTYPES[self.info.dtype]).cpu())
            if self.info.k < self.info.vocab_size:
                parts["tails"].append(tail_masses(log_probs, ids).cpu())
        return {name: torch.cat(values) for name, values in parts.items() if values}


def _fingerprints(file: Path) -> np.ndarray:
    try:
        with safe_open(str(file), "np") as shard:
            return shard.get_tensor("fingerprints")
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged ({error}): remove it, and it is written again") from None
