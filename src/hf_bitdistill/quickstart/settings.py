"""Everything that decides what a run of the quickstart does."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from .base_model import TEACHER_FOLDER


class QuickstartError(RuntimeError):
    """The quickstart cannot run here; the message says why and what would help."""


@dataclass(frozen=True)
class QuickstartSettings:
    """Settings of [`run_quickstart`]. The defaults fit 2 CPU cores and less than 8 minutes.

    Learning rates (a grid of factors of two, separately for each of the three ways) and loss weights were chosen on the
    validation paragraphs with about these numbers of steps; the test paragraphs were used for nothing.

    Args:
        base_model: folder of the full-precision base model.
        seed: of everything random: which examples, their order, which text.
        threads: of torch; `None`: as many as there are cores for this process.
        source_megabytes: limit of the Python source read per package.
        train_examples, test_examples: examples of the task, at most.
        max_length: tokens of an example, signature and summary together.
        block_size: tokens of a block of plain text.
        perplexity_blocks: held-out blocks on which perplexity is measured.
        pretraining_steps, pretraining_batch_size, pretraining_learning_rate: of the continual pre-training.
        fine_tuning_steps, batch_size: of each of the three fine-tunings.
        full_precision_learning_rate, bitnet_learning_rate, bitdistill_learning_rate: one for each way.
        temperature, logits_loss_weight, attention_loss_weight, relation_heads: of BitDistill's last stage. Found for
            this small model; the published ones belong to models hundreds of times larger.
        timing_seconds: how long each speed is measured.
        shown_examples: held-out signatures for which the reloaded packed model writes the summary.
        progress: whether to show progress bars.
    """

    base_model: Path = TEACHER_FOLDER
    seed: int = 0
    threads: int | None = None
    source_megabytes: float = 14.0
    train_examples: int = 10_000
    test_examples: int = 1500
    max_length: int = 96
    block_size: int = 128
    perplexity_blocks: int = 200
    pretraining_steps: int = 600
    pretraining_batch_size: int = 16
    pretraining_learning_rate: float = 3e-3
    fine_tuning_steps: int = 300
    batch_size: int = 32
    full_precision_learning_rate: float = 2e-3
    bitnet_learning_rate: float = 2e-3
    bitdistill_learning_rate: float = 2e-3
    temperature: float = 2.0
    logits_loss_weight: float = 3.0
    attention_loss_weight: float = 2e2
    relation_heads: int = 8
    timing_seconds: float = 3.0
    shown_examples: int = 6
    progress: bool = True
    # Not an option: what the report says the run was started with.
    command: str = field(default="bitdistill quickstart", compare=False)

    def __post_init__(self) -> None:
        for name in (
            "train_examples",
            "test_examples",
            "max_length",
            "block_size",
            "perplexity_blocks",
            "pretraining_steps",
            "pretraining_batch_size",
            "fine_tuning_steps",
            "batch_size",
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise QuickstartError(f"{name} must be a positive integer, got {value!r}.")
        if self.threads is not None and self.threads < 1:
            raise QuickstartError(f"threads must be positive, got {self.threads}.")

    @property
    def torch_threads(self) -> int:
        """Threads of torch in this run."""
        return self.threads or available_cores()


def available_cores() -> int:
    """CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
