"""How well a model predicts the held-out answers, token by token, and how sure that is."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data import build_dataset, collate
from .task import TASK


@dataclass(frozen=True)
class AnswerScores:
    """One entry per example.

    Attributes:
        tokens: answer tokens (end-of-text included).
        correct: how many of them were the model's first choice, given the true ones before.
        nll: sum of their negative log-likelihoods, nats.
    """

    tokens: list[int]
    correct: list[int]
    nll: list[float]

    @property
    def accuracy(self) -> float:
        """Share of the answer tokens that were the first choice."""
        return sum(self.correct) / sum(self.tokens)

    @property
    def perplexity(self) -> float:
        """Per answer token."""
        return math.exp(sum(self.nll) / sum(self.tokens))

    @property
    def standard_error(self) -> float:
        """Of `accuracy`. Tokens of one answer are not independent, answers are: the error of a ratio of sums."""
        return _ratio_error(self.correct, self.tokens)


def _ratio_error(values: Sequence[float], weights: Sequence[int]) -> float:
    ratio = sum(values) / sum(weights)
    squares = sum((value - ratio * weight) ** 2 for value, weight in zip(values, weights, strict=True))
    return math.sqrt(squares) / sum(weights)


def paired_difference(first: AnswerScores, second: AnswerScores) -> tuple[float, float]:
    """Accuracy of `first` minus that of `second` on the same examples, and its standard error.

    Two models are right about many of the same tokens, so their difference is known better than either accuracy.
    """
    differences = [a - b for a, b in zip(first.correct, second.correct, strict=True)]
    return sum(differences) / sum(first.tokens), _ratio_error(differences, first.tokens)


def chance_level(train: Dataset, test: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> AnswerScores:
    """What knowing only how frequent each token is in the training answers gives: always the most frequent one, and the
    likelihood under the frequencies (add-one smoothed)."""
    rows = [
        build_dataset(TASK, dataset, tokenizer, max_length, skip_overlong=True)["labels"] for dataset in (train, test)
    ]
    answers = [[[token for token in labels if token >= 0] for labels in column] for column in rows]
    counts = Counter(token for answer in answers[0] for token in answer)
    best = counts.most_common(1)[0][0]
    total = sum(counts.values()) + len(tokenizer)
    return AnswerScores(
        [len(answer) for answer in answers[1]],
        [answer.count(best) for answer in answers[1]],
        [-sum(math.log((counts[token] + 1) / total) for token in answer) for answer in answers[1]],
    )


@torch.inference_mode()
def score_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    test: Dataset,
    max_length: int,
    batch_size: int = 32,
    progress: bool = True,
) -> AnswerScores:
    """Score the true answers of `test` under a model in evaluation mode."""
    rows = build_dataset(TASK, test, tokenizer, max_length, skip_overlong=True)
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row]["input_ids"]))
    merge = collate(tokenizer)
    tokens, correct, nll = [0] * len(rows), [0] * len(rows), [0.0] * len(rows)
    for start in tqdm(range(0, len(rows), batch_size), desc="held-out answers", unit="batch", disable=not progress):
        chosen = order[start : start + batch_size]
        batch = merge([rows[row] for row in chosen]).to(model.device)
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
        targets = batch["labels"][:, 1:]
        logits = logits[:, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
        mask = targets >= 0
        hits = (logits.argmax(-1) == targets) & mask
        for position, row in enumerate(chosen):
            tokens[row] = int(mask[position].sum())
            correct[row] = int(hits[position].sum())
            nll[row] = float(losses[position].double().sum())
    return AnswerScores(tokens, correct, nll)
