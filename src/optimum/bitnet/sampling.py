"""Draws a token from a large vocabulary in less time than the decoder needs for it.

transformers samples with one random number for every token of the vocabulary, and finds the top p by sorting all of it: 16 ms a token with
a vocabulary of 150,000, more than a ternary model of 0.6B takes to compute the logits. The distribution here is the same; with
the same seed the draws are others.
"""

from __future__ import annotations

import copy
import math
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


_LIKELY = 1024
"""Tokens among which the top p is looked for first, if there is no top k."""

_BLOCK = 64
_NOTHING_TO_DRAW = "cannot sample: the scores hold NaN, or -inf for every token"


class DrawToken(LogitsProcessor):
    """Draws a token: the scores it returns are -inf except for that one, so that their argmax is it.

    Args:
        temperature: divides the scores.
        top_k: draw among that many; of tokens with equal scores at the border some are left out. `None`: all.
        top_p: draw among the likeliest tokens, as few as reach this probability. `None`: all.
        min_tokens_to_keep: at least that many stay whatever `top_p` is.
    """

    def __init__(
        self,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_tokens_to_keep: int = 1,
    ):
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self.min_tokens_to_keep = min_tokens_to_keep

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """
        Args:
            scores: float `[B, vocab_size]`.

        Raises:
            ValueError: scores are NaN, or no token is possible.
        """
        vocabulary = scores.shape[-1]
        if self.top_k is not None and self.top_k < vocabulary:
            token = self._among(scores, self.top_k, None)
        elif self.top_p is not None:
            total = torch.logsumexp(scores / self.temperature, dim=-1, keepdim=True)
            token = self._among(scores, min(_LIKELY, vocabulary), total)
            if token is None:  # a flat distribution
                token = self._among(scores, vocabulary, total)
        else:
            token = _draw(torch.softmax(scores / self.temperature, dim=-1))
        return torch.full_like(scores, -math.inf).scatter_(1, cast(Tensor, token), 0.0)

    def _among(self, scores: Tensor, count: int, total: Tensor | None) -> Tensor | None:
        """Draw among the `count` likeliest, `[B, 1]`; `None` if that is less than the top p.

        Args:
            total: log of the sum of all exponentials, if others than these count for the top p.
        """
        values, tokens = _largest(scores, count)
        values = values / self.temperature
        probabilities = torch.softmax(values, dim=-1) if total is None else (values - total).exp()
        if self.top_p is not None:
            reached = probabilities.cumsum(dim=-1)
            if count < scores.shape[-1] and total is not None and bool((reached[:, -1] < self.top_p).any()):
                return None
            drop = reached - probabilities >= self.top_p
            drop[:, : self.min_tokens_to_keep] = False
            probabilities = probabilities.masked_fill(drop, 0.0)
        try:
            return tokens.gather(1, torch.multinomial(probabilities, 1))
        except RuntimeError as error:
            raise ValueError(_NOTHING_TO_DRAW) from error


def _largest(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """As `torch.topk` of `[B, n]`; a third of its time if n is large and `count` small.

    The largest values lie in those blocks whose maxima are the largest.
    """
    size = scores.shape[-1]
    if size // _BLOCK < 4 * count:
        return torch.topk(scores, count)
    blocks = scores.unfold(1, _BLOCK, _BLOCK)
    best = torch.topk(blocks.amax(dim=-1), count, sorted=False).indices
    columns = (best[:, :, None] * _BLOCK + torch.arange(_BLOCK, device=scores.device)).flatten(1)
    if size % _BLOCK:  # columns behind the last whole block
        tail = torch.arange(size - size % _BLOCK, size, device=scores.device)
        columns = torch.cat([columns, tail.expand(scores.shape[0], -1)], dim=1)
    values, places = torch.topk(scores.gather(1, columns), count)
    return values, columns.gather(1, places)


def _draw(weights: Tensor) -> Tensor:
    """An index of each row, with probabilities proportional to `weights` `[B, n]`. int64 `[B, 1]`."""
    cumulative = weights.cumsum(dim=-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    if not bool(((total > 0) & total.isfinite()).all()):
        raise ValueError(_NOTHING_TO_DRAW)
    # A hair below one, so that rounding never reaches the total, behind which there is nothing.
    place = torch.rand_like(total) * total * (1 - 2.0**-40)
    return torch.searchsorted(cumulative, place, right=True)


def draw_in_processors(
    processors: LogitsProcessorList, config: GenerationConfig
) -> tuple[LogitsProcessorList, GenerationConfig]:
    """The same sampling with [`DrawToken`] in place of the last processors and the draw, or the arguments as they are.

    They stay where nothing is sampled, and where the processors' scores are asked for.
    """
    if not config.do_sample or (config.return_dict_in_generate and config.output_scores):
        return processors, config
    rest = list(processors)

    def last(kind: type[LogitsProcessor]) -> Any:
        found = rest and type(rest[-1]) is kind and getattr(rest[-1], "filter_value", -math.inf) == -math.inf
        return rest.pop() if found else None

    top_p, top_k, temperature = last(TopPLogitsWarper), last(TopKLogitsWarper), last(TemperatureLogitsWarper)
    draw = DrawToken(
        temperature=temperature.temperature if temperature else 1.0,
        top_k=top_k.top_k if top_k else None,
        top_p=top_p.top_p if top_p else None,
        min_tokens_to_keep=top_p.min_tokens_to_keep if top_p else 1,
    )
    greedy = copy.copy(config)
    greedy.do_sample = False
    return LogitsProcessorList([*rest, draw]), greedy
