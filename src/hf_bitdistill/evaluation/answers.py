"""How a causal LM predicts given answers, token by token."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch

from ..data.preprocessing import collate
from .batching import check_finite, evaluating, forward_logits, in_order, longest_first, model_device
from .sharing import check_alike, results_of
from .uncertainty import ratio_error


if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase


def predict_answers(
    model: Any, tokenizer: PreTrainedTokenizerBase, rows: Dataset, batch_size: int = 16
) -> list[tuple[int, int, float, list[int]]]:
    """Predicts every token that has a label, given the true ones before it.

    Args:
        rows: ``input_ids``, ``attention_mask``, ``labels``, unpadded; a label -100 where there is none.

    Returns:
        For each row: tokens with a label; how many of them were the model's first choice; the sum of their negative log-likelihoods in
        nats (logits in float32, summed in float64); the first choices.

    Raises:
        FloatingPointError: If a loss is not finite.
    """
    merge = collate(tokenizer)
    columns = rows.select_columns(["input_ids", "attention_mask", "labels"])
    device = model_device(model)
    batches = longest_first(columns["input_ids"], batch_size)

    def predict(chosen: list[int]) -> list[tuple[int, int, float, list[int]]]:
        batch = merge([columns[row] for row in chosen])
        logits = forward_logits(model, batch["input_ids"].to(device), batch["attention_mask"].to(device))
        targets = batch["labels"][:, 1:]
        found = []
        for place in range(len(chosen)):
            # One row at a time: the float32 copy of a whole batch's logits is the largest tensor there would be.
            where = targets[place] >= 0
            wanted = targets[place][where].to(logits.device)
            own = logits[place, :-1][where.to(logits.device)].float()
            losses = torch.nn.functional.cross_entropy(own, wanted, reduction="none")
            check_finite(losses, "losses")
            choices = own.argmax(-1)
            found.append(
                (int(where.sum()), int((choices == wanted).sum()), float(losses.double().sum()), choices.tolist())
            )
        return found

    check_alike(model, "the rows", lambda: chain(columns["input_ids"], columns["labels"]))
    with evaluating(model):
        parts = results_of(model, batches, predict)
    return in_order(batches, parts)


def score_answers(
    predicted: Sequence[tuple[int, int, float, Any]], labels: Sequence[Sequence[int]]
) -> dict[str, float | int]:
    """Token accuracy and perplexity of given answers.

    Args:
        predicted: What :func:`predict_answers` returned.
        labels: Of the same rows.

    Returns:
        ``token_accuracy`` and ``perplexity`` (each with ``_stderr``: tokens of one answer are not independent, answers are), ``n`` (rows),
        ``tokens``; and what a model would reach that knows nothing but how frequent each token is in these answers: ``chance_level``
        (token accuracy) and ``chance_perplexity``.

    Raises:
        ValueError: If no token has a label.
    """
    tokens, correct, nll = ([row[column] for row in predicted] for column in range(3))
    total = sum(tokens)
    if not total:
        raise ValueError("there is no answer to score: no token has a label")
    perplexity = math.exp(min(sum(nll) / total, 700.0))
    counts = Counter(token for row in labels for token in row[1:] if token >= 0)
    return {
        "token_accuracy": sum(correct) / total,
        "perplexity": perplexity,
        "token_accuracy_stderr": ratio_error(correct, tokens),
        "perplexity_stderr": perplexity * ratio_error(nll, tokens),
        "n": len(tokens),
        "tokens": total,
        "chance_level": max(counts.values()) / total,
        "chance_perplexity": math.exp(-sum(count * math.log(count / total) for count in counts.values()) / total),
    }


def answer_scores(
    model: Any, tokenizer: PreTrainedTokenizerBase, rows: Dataset, batch_size: int = 16
) -> dict[str, float | int]:
    """Predicts and scores given answers: arguments and errors as of :func:`predict_answers`, result and errors of :func:`score_answers`."""
    return score_answers(predict_answers(model, tokenizer, rows, batch_size), rows["labels"])
