"""Training on streamed datasets: each process reads its own part, pass after pass, and a checkpoint says where it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from datasets import IterableDataset
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import logging

from ..data.streams import POSITION, Position, Readers, Stream
from ..files.tensor_headers import CheckpointError
from ..files.training_checkpoints import STREAM_POSITION


logger = logging.get_logger(__name__)

# Beside the random states of a process in a checkpoint.
_FILE = STREAM_POSITION + "_{}.json"


class StreamedRowsTrainer(Trainer):
    """`Trainer` for which a streamed `train_dataset` is a [`Stream`].

    - Each process reads and tokenises its own part (stock: the first one does it for all), and so does each `DataLoader` worker.
    - It is read in pass after pass until `max_steps`; no batch is cut short at the end of a pass.
    - A checkpoint says where each process was, also in a later pass, and a training goes on from there with the rows that it would have read
      without the interruption. With another number of processes or workers the rows are dealt out anew, and a warning says so.

    `accelerator_config` with `dispatch_batches=True` or `split_batches=True` leaves all that as it is in `Trainer`.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        # Where the readers of this process are, and the last that was heard of; where a training goes on.
        self._positions: dict[int, Position] = {}
        self._last_reader: int | None = None
        self._going_on: dict[str, Any] = {}
        self._random_states_of: str | None = None

    def _stream(self) -> Stream | None:
        """The training data where it is streamed and each process reads its own."""
        config = self.accelerator.dataloader_config
        if config.dispatch_batches or config.split_batches:
            return None
        if isinstance(self.train_dataset, IterableDataset):
            return Stream(self.train_dataset)
        return self.train_dataset if isinstance(self.train_dataset, Stream) else None

    def _readers(self) -> tuple[Readers, int]:
        """Of the stream, and which process this is among those that read different rows."""
        alike = self.get_tp_size() * self.get_cp_size() * self.get_sp_size()
        processes = max(1, self.accelerator.num_processes // alike)
        return Readers(processes, max(1, self.args.dataloader_num_workers)), self.accelerator.process_index // alike

    # ---- Reading ----

    def get_train_dataloader(self) -> DataLoader:
        """As in `Trainer`."""
        stream = self._stream()
        if stream is None:
            return super().get_train_dataloader()
        readers, _ = self._readers()
        sharers = stream.sharers(readers)
        if sharers > 1 and self.is_world_process_zero():
            logger.warning(
                f"The stream has {stream.shards} shard(s) for {readers.processes} process(es) with {readers.workers} reader(s) each: {sharers} "
                f"readers read and tokenise the same rows, and each keeps one of {sharers}. In at least {readers.count} files each would be "
                "read once."
            )
        config = self.accelerator.dataloader_config
        kept = self.train_dataset, self.data_collator, config.dispatch_batches
        self.train_dataset = stream.shared(readers, **self._going_on)
        self.data_collator = cast(Any, _KeepsPosition(kept[1]))
        config.dispatch_batches = False
        try:
            loader = super().get_train_dataloader()
        finally:
            self.train_dataset, self.data_collator, config.dispatch_batches = kept
        if getattr(loader.dataset, "num_shards", None) != 2 * readers.workers:
            raise RuntimeError(
                "the installed accelerate does not deal the stream out to the processes: set dispatch_batches=True"
            )
        return loader

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns = cast("list[str]", self._signature_columns)  # (set now)
        if POSITION not in columns:
            columns.append(POSITION)

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, torch.Tensor | int | None]:
        """As in `Trainer`. What was read is known here: what was fetched ahead is not part of it."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        for batch in batches:
            position = batch.pop(POSITION, None)
            if position is not None:
                position = Position(*position)
                self._positions[position.reader], self._last_reader = position, position.reader
        if self._random_states_of is not None:
            # Once more: the start of the loader took a random number, which a training without interruption took long before.
            self._load_rng_state(self._random_states_of)
            self._random_states_of = None
        return batches, items

    # ---- Going on ----

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As in `Trainer`.

        Raises:
            ValueError: something is to be done at the end of an epoch, and a stream has none.
            CheckpointError: what the checkpoint says of the stream is damaged.
        """
        stream = self._stream()
        self._positions, self._last_reader, self._going_on, self._random_states_of = {}, None, {}, None
        if stream is None:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        for name in ("save_strategy", "eval_strategy", "logging_strategy"):
            if getattr(self.args, name) == "epoch":
                raise ValueError(f"{name}='epoch': a streamed dataset is read without an end; use 'steps'")
        as_given = self.args.ignore_data_skip
        if isinstance(resume_from_checkpoint, str) and not as_given:
            self._find_place(stream, Path(resume_from_checkpoint))
            self._random_states_of = resume_from_checkpoint
        # Before those of the user, which see what it sets.
        self.callback_handler.callbacks.insert(0, _CountSteps())
        # The stream begins where the training stopped: there is nothing for `Trainer` to skip.
        self.args.ignore_data_skip = True
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            self.args.ignore_data_skip = as_given
            self.remove_callback(_CountSteps)

    def _find_place(self, stream: Stream, checkpoint: Path) -> None:
        """Where a checkpoint's readers were. `_going_on`, `_positions`: as of the training that wrote it."""
        readers, process = self._readers()
        files = sorted(checkpoint.glob(_FILE.format("*")))
        written: dict[str, Any] | None = None
        positions: dict[int, Position] = {}
        last: dict[int, int] = {}
        for file in files:
            try:
                content = json.loads(file.read_text(encoding="utf-8"))
                written = content["stream"]
                each = [Position(*map(int, position)) for position in content["positions"]]
                last[int(content["process"])] = int(content["last_reader"])
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise CheckpointError(f"{file} is damaged ({type(error).__name__}: {error})") from error
            positions |= {position.reader: position for position in each}
        if written == self._described(stream, readers):
            if process not in last:
                missing = _FILE.format(self.accelerator.process_index)
                raise CheckpointError(
                    f"{checkpoint} does not say where in the stream this process was: {missing} is missing"
                )
            self._positions = {
                reader: positions[reader] for reader in readers.of_process(process) if reader in positions
            }
            self._last_reader = last[process]
            self._going_on = {"starts": positions, "first": (last[process] + 1) % readers.workers}
            return
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        size, batches = self.args.train_batch_size, state.global_step * self.args.gradient_accumulation_steps
        if written is not None and len(files) == written["processes"]:
            batches = sum(position.rows for position in positions.values()) // (size * readers.processes)
        shares = [len(range(worker, batches, readers.workers)) * size for worker in range(readers.workers)]
        self._going_on = {"first": batches % readers.workers, "skip": shares}
        if not self.is_world_process_zero():
            return
        if written is None:
            logger.warning(
                f"{checkpoint} does not say where in the stream it was: what {state.global_step} steps read is read again and left out."
            )
        else:
            now = self._described(stream, readers)
            differ = ", ".join(
                f"{name} {written.get(name)}, now {now[name]}" for name in now if written.get(name) != now[name]
            )
            logger.warning(
                f"{checkpoint} was in a stream that is dealt out otherwise now ({differ}): as many rows as it had read are left out, but "
                "some of those that follow were read before, and some are not read in this pass."
            )

    @staticmethod
    def _described(stream: Stream, readers: Readers) -> dict[str, Any]:
        """What decides which rows a reader has, and in which order."""
        return {
            "processes": readers.processes,
            "workers": readers.workers,
            "shards": stream.shards,
            "seed": stream.seed,
            "by_shard": stream.by_shard,
        }

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        stream = self._stream()
        if stream is None or self._last_reader is None:
            return
        readers, process = self._readers()
        content = {
            "version": 1,
            "stream": self._described(stream, readers),
            "process": process,
            "last_reader": self._last_reader,
            "positions": sorted(self._positions.values()),
        }
        file = Path(output_dir) / _FILE.format(self.accelerator.process_index)
        file.write_text(json.dumps(content) + "\n", encoding="utf-8")


class _KeepsPosition:
    """A data collator that hands on the position of the last row.

    Args:
        collate: the collator of the rows without it.
    """

    def __init__(self, collate: Callable[[list[dict[str, Any]]], Mapping[str, Any]]):
        self.collate = collate

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        position = rows[-1][POSITION]
        batch: Any = self.collate([{name: value for name, value in row.items() if name != POSITION} for row in rows])
        batch[POSITION] = tuple(position)
        return batch


class _CountSteps(TrainerCallback):
    """Of a stream, `epoch` is the share of `max_steps` that is done, also after going on: `Trainer` counts from where it skipped to."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        state.epoch = state.global_step / state.max_steps
