"""Evaluation in several processes on the very batches of one process: no row counts twice."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import Any, cast

from torch import Tensor, nn
from torch.utils.data import BatchSampler, IterableDataset
from transformers import Trainer
from transformers.utils import logging


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
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        # In an evaluation: whether batches may be of different sizes, and whether the last one of this process is a repeated one.
        self._uneven = False
        self._repeats_last = False

    @property
    def is_repeated_batch(self) -> bool:
        """Whether the batch that is evaluated is there only for the other processes' sake."""
        return self._repeats_last and self.accelerator.gradient_state.end_of_dataloader

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        """As in `Trainer`."""
        self._uneven, self._repeats_last = self._take_turns(dataloader)
        across = self.args.average_tokens_across_devices
        if self.accelerator.num_processes > 1 and self.get_tp_size() * self.get_cp_size() * self.get_sp_size() == 1:
            # The mean of a batch is over its own tokens; those of the batches beside it are another mean, and repeated ones have no part.
            self.args.average_tokens_across_devices = False
        try:
            return super().evaluation_loop(dataloader, *args, **kwargs)
        finally:
            self._uneven = self._repeats_last = False
            self.args.average_tokens_across_devices = across

    def _take_turns(self, dataloader: Any) -> tuple[bool, bool]:
        """Make the batches of a prepared loader those of one process. Returns whether it was done, and whether this process's last one is
        a repeated one."""
        if self.accelerator.num_processes == 1:
            return False, False
        if isinstance(getattr(dataloader, "dataset", None), IterableDataset):
            if self.is_world_process_zero():
                logger.warning_once(
                    "The rows to evaluate are streamed: in several processes the last batch is filled up with rows that were evaluated "
                    "before, and its losses count. Load them as a whole for the numbers of one process."
                )
            return False, False
        # accelerate's, which deals batches out to the processes.
        turns = getattr(dataloader, "batch_sampler", None)
        batches = getattr(turns, "batch_sampler", None)
        if (
            turns is None
            or not isinstance(batches, BatchSampler)
            or getattr(turns, "split_batches", True)
            or turns.drop_last
        ):
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
