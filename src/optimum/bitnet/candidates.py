"""Assisted decoding near the end of the context."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.generation.candidate_generator import PromptLookupCandidateGenerator


class CandidatesWithinContext:
    """Candidates of prompt lookup, as many as fit into the model's positions: it also proposes tokens beyond the length that was asked
    for, which are dropped only after the model has read them.

    Args:
        generator: what proposes; everything else is asked of it too.
        max_positions: of the model that reads the candidates.
    """

    def __init__(self, generator: PromptLookupCandidateGenerator, max_positions: int):
        self._generator, self._max_positions = generator, max_positions

    def get_candidates(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        """Ids `[1, T + candidates]`."""
        candidates, _ = self._generator.get_candidates(input_ids, *args, **kwargs)
        return candidates[:, : max(self._max_positions, input_ids.shape[1])], None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._generator, name)
