"""Candidates of prompt lookup: how many are read, and where the context ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from torch import Tensor


SCHEDULES = ("heuristic", "heuristic_transient")
"""Values of `num_assistant_tokens_schedule` by which the number follows what is accepted."""

# Of reading one more candidate, in reads of one token, before it was measured: between what it is where memory bandwidth is the limit and where
# arithmetic is. It is believed within these bounds, after as many steps of either kind.
_PRICE, _LEAST_PRICE, _HIGHEST_PRICE, _FEWEST_STEPS = 0.15, 0.02, 2.0, 3.0
# Before anything was seen; and how much of what was seen still counts after another look.
_ACCEPTED, _REJECTED, _KEPT = 2.0, 1.0, 0.9
_KEPT_TIMES = 0.97


class Price:
    """What reading one more candidate costs, in reads of one token, from the time that steps took: it depends on the CPU, on the threads and on
    the model."""

    def __init__(self) -> None:
        # Steps, seconds, candidates: of steps without candidates, and with some.
        self._alone, self._more = [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]

    def see(self, candidates: int, seconds: float) -> None:
        """A step that read one token and `candidates` more."""
        sums = self._more if candidates else self._alone
        for place, value in enumerate((1.0, seconds, float(candidates))):
            sums[place] = sums[place] * _KEPT_TIMES + value

    def __call__(self) -> float:
        alone, more = self._alone, self._more
        if min(alone[0], more[0]) < _FEWEST_STEPS * _KEPT_TIMES**_FEWEST_STEPS or alone[1] <= 0:
            return _PRICE
        one = alone[1] / alone[0]
        price = (more[1] / more[0] - one) / one / (more[2] / more[0])
        return min(max(price, _LEAST_PRICE), _HIGHEST_PRICE)


class NumberOfCandidates:
    """How many candidates are worth reading, from how many of the earlier ones were right.

    If each is right with probability p when those before it were, k of them give `1 + p + ... + p^k` tokens, at the price of
    `1 + k * price` tokens.

    Args:
        most: never more.
        price: of reading one more.
    """

    def __init__(self, most: int, price: Callable[[], float]):
        self._most, self._price = most, price
        self._accepted, self._rejected = _ACCEPTED, _REJECTED

    def best(self) -> int:
        """The number that gives most tokens a time; 0: none is worth it."""
        p = self._accepted / (self._accepted + self._rejected)
        best, best_rate, tokens, price = 0, 1.0, 1.0, self._price()
        for count in range(1, self._most + 1):
            tokens += p**count
            rate = tokens / (1 + count * price)
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
        adapts: offer as many as are worth it, not all.
        price: of a candidate, measured here and by earlier texts of the model. `None`: it may not be. Not where tokens are drawn: with the same
            seed there shall be the same text.
    """

    def __init__(
        self,
        generator: Any,
        max_positions: int,
        adapts: bool = False,
        price: Price | None = None,
    ):
        self._generator, self._max_positions = generator, max_positions
        self._price, self._started = price, 0.0
        self._number = NumberOfCandidates(generator.num_output_tokens, price or Price()) if adapts else None
        self._is_prompt = True
        self._offered = 0
        self._next: tuple[int, int] | None = None

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
        self._started = time.perf_counter()
        return candidates, None

    def update_candidate_strategy(self, input_ids: Tensor, scores: Tensor, num_matches: int) -> None:
        """Learn from what was accepted: called after each step, with the text as it is then."""
        self._generator.update_candidate_strategy(input_ids, scores, num_matches)
        if self._number is None:
            return
        if self._price is not None and not self._is_prompt:
            self._price.see(self._offered, time.perf_counter() - self._started)
        self._is_prompt = False
        if self._offered:
            self._number.see(self._offered, int(num_matches))
        elif self._next is not None:
            place, token = self._next
            self._number.see(1, int(input_ids[0, place] == token))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._generator, name)
