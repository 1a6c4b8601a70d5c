"""What a benchmark fine-tunes on: training examples, and one number for a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import docstrings
from datasets import Dataset
from settings import BenchmarkSettings
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_bitdistill.data import Task, build_dataset, get_task, load_task_dataset
from hf_bitdistill.evaluation import evaluate_task
from hf_bitdistill.recipe.measure import measure_answers, unigram_accuracy


class BenchmarkTask(Protocol):
    """A task of a benchmark.

    Attributes:
        metric: the number of the table, a key of what `scores` returns.
        train: tokenised examples.
    """

    metric: str
    train: Dataset

    def scores(self, model: PreTrainedModel) -> dict[str, Any]:
        """Measure a model in evaluation mode; `n` is the number of examples, `chance_level` where there is one."""
        ...


def make_task(settings: BenchmarkSettings, tokenizer: PreTrainedTokenizerBase, data_dir: Path | None) -> BenchmarkTask:
    """The task that the settings name."""
    if settings.task == docstrings.TASK.name:
        return _DocstringTask(settings, tokenizer)
    return _LibraryTask(get_task(settings.task), settings, tokenizer, data_dir)


class _LibraryTask:
    """One of `hf_bitdistill.data`: accuracy, or ROUGE-Lsum."""

    def __init__(
        self, task: Task, settings: BenchmarkSettings, tokenizer: PreTrainedTokenizerBase, data_dir: Path | None
    ):
        self.task, self.tokenizer, self.max_length = task, tokenizer, settings.max_length
        self.metric = "accuracy" if task.kind == "classification" else "rougeLsum"
        data = {"data_dir": None if data_dir is None else str(data_dir)}
        self.validation = load_task_dataset(task, "validation", max_samples=settings.eval_examples, **data)
        train = load_task_dataset(task, "train", **data)
        self.train = build_dataset(task, train, tokenizer, settings.max_length, skip_overlong=True)

    def scores(self, model: PreTrainedModel) -> dict[str, Any]:
        return evaluate_task(
            model,
            self.tokenizer,
            self.task,
            self.validation,
            batch_size=32,
            max_length=self.max_length,
            progress=False,
        )


class _DocstringTask:
    """The summary line of a docstring: token accuracy, see `bitdistill quickstart`. What is held out are its test paragraphs."""

    metric = "token_accuracy"

    def __init__(self, settings: BenchmarkSettings, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        max_length = settings.max_length or docstrings.TASK.max_length
        counts = {
            "train": docstrings.SETTINGS.train_examples,
            "test": settings.eval_examples or docstrings.SETTINGS.test_examples,
        }
        self.train, self.validation = (
            build_dataset(
                docstrings.TASK, docstrings.examples(split, count), tokenizer, max_length, skip_overlong=True
            )
            for split, count in counts.items()
        )
        self.chance = unigram_accuracy(self.train["labels"], self.validation["labels"])

    def scores(self, model: PreTrainedModel) -> dict[str, Any]:
        measured = measure_answers(model, self.tokenizer, self.validation)
        return {
            self.metric: measured.accuracy,
            "standard_error": measured.accuracy_error,
            "answer_perplexity": measured.perplexity,
            "n": len(measured.tokens),
            "chance_level": self.chance,
        }
