"""Evaluation in several processes on the very batches of one process: no row counts twice."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import Any, cast

from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset
from transformers import Trainer
from transformers.utils import logging

from ..machine import processes
from ..nn import kernels_while_evaluating


logger = logging.get_logger(__name__)


class WholeTurns(BatchSampler):
    """Batches of another sampler, and the first one again until every process has as many.

    Args:
        batches: the sampler.
        processes: that take turns.
    """

    def __init__(self, batches: BatchSampler, processes: int):
        self.batches, self.processes = batches, processes
        # As accelerate asks for them.
        self.sampler: Any = getattr(batches, "sampler", None)
        self.batch_size, self.drop_last = cast(int, getattr(batches, "batch_size", None)), False

    def __len__(self) -> int:
        return ceil(len(self.batches) / self.processes) * self.processes

    def __iter__(self) -> Iterator[list[int]]:
        first: list[int] = []
        for batch in self.batches:
            first = first or list(batch)
            yield batch
        for _ in range(len(self) - len(self.batches)):
            yield list(first)


class EvaluatedRowsTrainer(Trainer):
    """`Trainer` whose evaluation in several processes gives the losses of one process with the same `per_device_eval_batch_size`.

    Stock, the last batches are filled up with rows that were evaluated before, and their losses count; and batches that are evaluated at the
    same time share one mean over their tokens. Here the last batch holds what is left, as in one process, a process without a batch of its own
    repeats the first one, which counts nowhere, and each batch has a mean of its own.

    Streamed rows have no places that could be dealt out: in several processes each reads all of them into memory, once, and they are evaluated
    as rows that were loaded. In one process they are streamed.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        # The streamed dataset that was read last, and its rows.
        self._read: tuple[IterableDataset, list[Any]] | None = None
        # In an evaluation: whether batches may be of different sizes, and whether the last one of this process is a repeated one.
        self._uneven = False
        self._repeats_last = False

    @property
    def is_repeated_batch(self) -> bool:
        """Whether the batch that is evaluated is there only for the other processes' sake."""
        return self._repeats_last and self.accelerator.gradient_state.end_of_dataloader

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """As in `Trainer`.

        Raises:
            ProcessesError: the rows are streamed, and not the same in all processes.
        """
        if not isinstance(eval_dataset, str):
            return super().get_eval_dataloader(
                self._whole(self.eval_dataset if eval_dataset is None else eval_dataset)
            )
        # Named: loaders that are kept are kept by name.
        given: Any = self.eval_dataset
        self.eval_dataset = {**given, eval_dataset: self._whole(given[eval_dataset])}
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.eval_dataset = given

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """As in `Trainer`.

        Raises:
            ProcessesError: the rows are streamed, and not the same in all processes.
        """
        return super().get_test_dataloader(self._whole(test_dataset))

    def _whole(self, dataset: Any) -> Any:
        """A dataset whose rows have places: in several processes a streamed one is read here."""
        if self.accelerator.num_processes == 1 or not isinstance(dataset, IterableDataset):
            return dataset
        if self._read is None or self._read[0] is not dataset:
            rows = processes.together(lambda: list(dataset), "reading the streamed rows to evaluate")
            processes.agree(
                "the number of streamed rows to evaluate",
                len(rows),
                "Give every process the whole dataset: it is dealt out by the trainer.",
            )
            self._read = (dataset, rows)
        return self._read[1]

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        """As in `Trainer`."""
        self._uneven, self._repeats_last = self._take_turns(dataloader)
        across = self.args.average_tokens_across_devices
        if self.accelerator.num_processes > 1 and self.get_tp_size() * self.get_cp_size() * self.get_sp_size() == 1:
            # The mean of a batch is over its own tokens; those of the batches beside it are another mean, and repeated ones have no part.
            self.args.average_tokens_across_devices = False
        try:
            with kernels_while_evaluating(self.accelerator.unwrap_model(self.model)):
                return super().evaluation_loop(dataloader, *args, **kwargs)
        finally:
            self._uneven = self._repeats_last = False
            self.args.average_tokens_across_devices = across

    def _take_turns(self, dataloader: Any) -> tuple[bool, bool]:
        """Make the batches of a prepared loader those of one process. Returns whether it was done, and whether this process's last one is
        a repeated one."""
        if self.accelerator.num_processes == 1:
            return False, False
        # accelerate's, which deals batches out to the processes.
        turns = getattr(dataloader, "batch_sampler", None)
        batches = getattr(turns, "batch_sampler", None)
        if turns is None or not isinstance(batches, BatchSampler) or getattr(turns, "split_batches", True):
            if self.is_world_process_zero():
                logger.warning_once(
                    "The rows to evaluate are not dealt out batch by batch: in several processes the last batch may be filled up with rows "
                    "that were evaluated before, and its losses count. Leave dispatch_batches and split_batches out of accelerator_config "
                    "for the numbers of one process."
                )
            return False, False
        if turns.drop_last:
            return False, False
        if not isinstance(batches, WholeTurns):
            if not turns.even_batches or turns.num_processes == 1:
                return False, False
            turns.batch_sampler, turns.even_batches = WholeTurns(batches, turns.num_processes), False
        left = len(turns.batch_sampler.batches) % turns.num_processes
        return True, 0 < left <= turns.process_index

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As in `Trainer`."""
        loss, logits, labels = super().prediction_step(model, inputs, *args, **kwargs)
        if self._uneven and self.accelerator.gradient_state.end_of_dataloader:
            # What is gathered has as many rows everywhere; those that are put in here are cut off again.
            logits, labels = (None if part is None else self._same_rows(part) for part in (logits, labels))
            if "inputs" in self.args.include_for_metrics:
                name = getattr(self.model, "main_input_name", "input_ids")
                inputs[name] = self._same_rows(self._prepare_input(inputs[name]))
        return loss, logits, labels

    def _same_rows(self, tensors: Any) -> Tensor | Any:
        return self.accelerator.pad_across_processes(tensors, dim=0, pad_index=-100)
