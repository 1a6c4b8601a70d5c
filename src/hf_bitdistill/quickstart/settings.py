"""What the quickstart's run of the recipe is told."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..recipe.settings import RecipeError, RecipeSettings
from .task import TASK


TEACHER_FOLDER = Path(__file__).parent / "teacher"
"""The base model of the package, which `scripts/train_quickstart_teacher.py` has made."""


class QuickstartError(RecipeError):
    """The quickstart cannot run here; the message says why and what would help."""


_STEPS, _BATCH = 300, 32
_PRETRAINING_STEPS, _PRETRAINING_BATCH, _BLOCK = 600, 16, 128

NUMBERS: Mapping[str, Any] = MappingProxyType(
    {
        # A Llama hundreds of times smaller than what the recipe's own numbers are for learns at higher rates. They (by factors of two, one
        # for each training) and the losses' weights were chosen on the validation paragraphs, in float32; the test paragraphs were used for
        # nothing.
        "batch_size": _BATCH,
        "teacher_examples": _STEPS * _BATCH,
        "teacher_learning_rates": [2e-3],
        "compare_learning_rate": 2e-3,
        # Before continual pre-training a warm start changed nothing here that can be told from none
        # (`benchmarks/results/accuracy/docstrings.md`).
        "window_steps": 0,
        "corpus_tokens": _PRETRAINING_STEPS * _PRETRAINING_BATCH * _BLOCK,
        "pretrain_batch_size": _PRETRAINING_BATCH,
        "block_size": _BLOCK,
        "pretrain_learning_rate": 3e-3,
        "distill_examples": _STEPS * _BATCH,
        "distill_learning_rates": [2e-3],
        "temperature": 2.0,
        "logits_loss_weight": 3.0,
        "attention_loss_weight": 2e2,
        "hidden_loss_weight": 0.0,
        "max_length": TASK.max_length,
        "held_out_rows": 256,
        "eval_rows": 0,
        "bf16": "false",
        "checkpoint_minutes": 1.0,
    }
)
"""Fields of `RecipeSettings`, where they differ from its defaults."""


@dataclass(frozen=True)
class QuickstartSettings:
    """Settings of [`run_quickstart`]. The defaults fit 2 CPU cores and less than 8 minutes.

    Args:
        base_model: folder of the full-precision base model.
        seed: of everything random: which examples, their order, which text.
        threads: of torch; `None`: as many as there are cores for this process.
        source_megabytes: limit of the Python source read per package.
        train_examples, test_examples: examples of the task, at most.
        shown_examples: held-out signatures for which the packed student writes the summary.
        numbers: fields of `RecipeSettings`, each instead of [`NUMBERS`]'.

    Raises:
        QuickstartError: a number is out of range; names it.
    """

    base_model: Path = TEACHER_FOLDER
    seed: int = 0
    threads: int | None = None
    source_megabytes: float = 14.0
    train_examples: int = 10_000
    test_examples: int = 1500
    shown_examples: int = 4
    numbers: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("train_examples", "test_examples"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise QuickstartError(f"{name} must be a positive integer, got {value!r}.")
        if self.threads is not None and self.threads < 1:
            raise QuickstartError(f"threads must be positive, got {self.threads}.")

    @property
    def torch_threads(self) -> int:
        """Threads of torch in this run."""
        return self.threads or available_cores()

    def recipe(self, output: Path, dataset: Path, corpus: Path) -> RecipeSettings:
        """The run of the recipe that this is.

        Raises:
            RecipeError: `numbers` has an unknown field, or a value that is out of range.
        """
        own = {"model": str(self.base_model), "output_dir": str(output), "seed": self.seed, "compare": True}
        try:
            return RecipeSettings(**{**own, "dataset": str(dataset), "corpus": str(corpus), **NUMBERS, **self.numbers})
        except TypeError as error:
            raise QuickstartError(f"Unknown number: {error}.") from None


def available_cores() -> int:
    """CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
