"""Candidates of prompt lookup: how many are read, and where the context ends."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.generation.candidate_generator import PromptLookupCandidateGenerator


SCHEDULES = ("heuristic", "heuristic_transient")
"""Values of `num_assistant_tokens_schedule` by which the number follows what is accepted."""

# Of reading one more candidate, in reads of one token: between what it is where memory bandwidth is the limit and where arithmetic is.
_COST = 0.15
# Before anything was seen; and how much of what was seen still counts after another look.
_ACCEPTED, _REJECTED, _KEPT = 2.0, 1.0, 0.9


class NumberOfCandidates:
    """How many candidates are worth reading, from how many of the earlier ones were right.

    If each is right with probability p when those before it were, k of them give `1 + p + ... + p^k` tokens, at the price of
    `1 + k * _COST` tokens. Clocks have no part in it: with the same seed, sampling gives the same text.

    Args:
        most: never more.
    """

    def __init__(self, most: int):
        self._most = most
        self._accepted, self._rejected = _ACCEPTED, _REJECTED

    def best(self) -> int:
        """The number that gives most tokens a time; 0: none is worth it."""
        p = self._accepted / (self._accepted + self._rejected)
        best, best_rate, tokens = 0, 1.0, 1.0
        for count in range(1, self._most + 1):
            tokens += p**count
            rate = tokens / (1 + count * _COST)
            if rate > best_rate:
                best, best_rate = count, rate
        return best

    def see(self, offered: int, right: int) -> None:
        """Of `offered` candidates the first `right` ones were accepted."""
        if offered:
            self._accepted = self._accepted * _KEPT + right
            self._rejected = self._rejected * _KEPT + (right < offered)


class Candidates:
    """Candidates of prompt lookup, as many as are worth it, and as many as fit into the model's positions: it also proposes tokens beyond the
    length that was asked for, which are dropped only after the model has read them.

    Args:
        generator: what proposes; everything else is asked of it too.
        max_positions: of the model that reads the candidates.
        number: chooses how many; `None`: all.
    """

    def __init__(
        self, generator: PromptLookupCandidateGenerator, max_positions: int, number: NumberOfCandidates | None = None
    ):
        self._generator, self._max_positions, self._number = generator, max_positions, number
        self._offered, self._next = 0, None

    def get_candidates(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        """Ids `[1, T + candidates]`."""
        candidates, _ = self._generator.get_candidates(input_ids, *args, **kwargs)
        length = input_ids.shape[1]
        end = max(self._max_positions, length)
        if self._number is not None:
            end = min(end, length + self._number.best())
            # One that is not read is compared with what comes all the same: it costs nothing, and tells when candidates pay again.
            self._next = (length, int(candidates[0, length])) if candidates.shape[1] > length else None
        candidates = candidates[:, :end]
        self._offered = candidates.shape[1] - length
        return candidates, None

    def update_candidate_strategy(self, input_ids: Tensor, scores: Tensor, num_matches: int) -> None:
        """Learn from what was accepted: called after each step, with the text as it is then."""
        self._generator.update_candidate_strategy(input_ids, scores, num_matches)
        if self._number is None:
            return
        if self._offered:
            self._number.see(self._offered, int(num_matches))
        elif self._next is not None:
            place, token = self._next
            self._number.see(1, int(input_ids[0, place] == token))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._generator, name)
