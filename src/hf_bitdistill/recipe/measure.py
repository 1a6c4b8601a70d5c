"""How a model does on rows, row by row, so that two models can be compared in pairs; and its score."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ..data import PromptEncoder, Task, build_dataset, label_word_ids
from ..evaluation.answers import predict_answers
from ..evaluation.batching import evaluating, longest_first
from ..evaluation.likelihood import label_word_scores
from ..evaluation.uncertainty import ratio_error


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_BATCH = 16


@dataclass(frozen=True)
class Score:
    """A model's score on the evaluation split.

    Attributes:
        metric: its name.
        value, stderr: the score and one standard error.
        n: rows.
        chance: what a model scores that has seen no row but knows how frequent each answer is; `None` where that is not a number.
        more: other values.
    """

    metric: str
    value: float
    stderr: float
    n: int
    chance: float | None
    more: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Difference:
    """One model minus another on the same rows, and one standard error of it."""

    value: float
    stderr: float


@dataclass
class Measured:
    """A model on rows. One entry a row.

    Attributes:
        tokens: answers that were predicted (1 of a row with a class, else its answer tokens).
        correct: how many of them were the model's first choice.
        nll: their negative log-likelihood, nats: of a class among the classes, of tokens in the vocabulary.
        choices: the first choices.
    """

    tokens: list[int]
    correct: list[int]
    nll: list[float]
    choices: list[list[int]]

    @property
    def accuracy(self) -> float:
        return sum(self.correct) / sum(self.tokens)

    @property
    def accuracy_error(self) -> float:
        return ratio_error(self.correct, self.tokens)

    @property
    def loss(self) -> float:
        return sum(self.nll) / sum(self.tokens)

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))

    def loss_over(self, other: Measured) -> Difference:
        """How much higher this model's loss is."""
        return _difference(self.nll, other.nll, self.tokens)

    def accuracy_over(self, other: Measured) -> Difference:
        """How much higher this model's accuracy is."""
        return _difference(self.correct, other.correct, self.tokens)

    def agreement(self, other: Measured) -> float:
        """Share of the answers for which both have the same first choice."""
        same = sum(a == b for x, y in zip(self.choices, other.choices, strict=True) for a, b in zip(x, y, strict=True))
        return same / sum(self.tokens)

    def summary(self) -> dict[str, float]:
        return {"loss": self.loss, "accuracy": self.accuracy, "accuracy_stderr": self.accuracy_error}

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), **self.summary()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Measured:
        return cls(*(values[name] for name in ("tokens", "correct", "nll", "choices")))


def _difference(first: Sequence[float], second: Sequence[float], tokens: Sequence[int]) -> Difference:
    differences = [a - b for a, b in zip(first, second, strict=True)]
    return Difference(sum(differences) / sum(tokens), ratio_error(differences, tokens))


def measure_classes(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, rows: Dataset, max_length: int
) -> Measured:
    """By the likelihood of the label words, as `evaluate_task` predicts.

    Args:
        rows: with the task's columns.
    """
    prompts = [list(ids) for ids in build_dataset(task, rows, tokenizer, max_length, train=False)["input_ids"]]
    words = label_word_ids(PromptEncoder(task, tokenizer, max_length))
    labels = torch.tensor([int(label) for label in rows[task.target_field]])
    with evaluating(model):
        scores, _ = label_word_scores(model, tokenizer, prompts, words, longest_first(prompts, _BATCH))
    losses = torch.nn.functional.cross_entropy(scores, labels, reduction="none")
    choices = scores.argmax(-1)
    return Measured(
        [1] * len(prompts),
        (choices == labels).int().tolist(),
        losses.tolist(),
        [[choice] for choice in choices.tolist()],
    )


def measure_answers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Dataset) -> Measured:
    """By the tokens that have a label, each given the true ones before it.

    Args:
        rows: `input_ids`, `attention_mask`, `labels`, unpadded.
    """
    return Measured(*map(list, zip(*predict_answers(model, tokenizer, rows, _BATCH), strict=True)))


def majority_share(train: Sequence[Any], evaluation: Sequence[Any]) -> float:
    """The score of always giving the answer that is most frequent in training."""
    best = Counter(train).most_common(1)[0][0]
    return sum(answer == best for answer in evaluation) / len(evaluation)


def unigram_accuracy(train: Sequence[Sequence[int]], evaluation: Sequence[Sequence[int]]) -> float:
    """The token accuracy of always giving the token that is most frequent in the training answers."""

    def answers(rows: Sequence[Sequence[int]]) -> list[int]:
        return [token for row in rows for token in row[1:] if token >= 0]

    return majority_share(answers(train), answers(evaluation))
