"""What a cache keeps of all tokens but the most likely ones: how much they weigh together, at every temperature.

With the teacher's log-probabilities `l_j` at temperature 1, the tail weighs `exp(phi(b))` at temperature `1 / b`, where
`phi(b) = log sum_j exp(b l_j)` over its tokens, on the scale on which a kept token weighs `exp(b l_i)`. phi is convex. It is kept at the
inverse temperatures of `TEMPERATURES`, and at `b = 0` it is the logarithm of the number of tokens; between two of these it is taken to
be linear. So it is exact at the temperatures of the list, and between them never too small and too large by no more than
[`tail_error`].
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


TEMPERATURES = (10.0, 5.0, 2.0, 1.0, 0.5)
"""At which the mass of the tail is kept. Lower ones than the last are not served."""


def tail_masses(log_probs: Tensor, ids: Tensor) -> Tensor:
    """`[N, len(TEMPERATURES)]` float32: phi at these temperatures.

    Args:
        log_probs: `[N, V]` at temperature 1.
        ids: `[N, k]` of the tokens that are kept, k < V.
    """
    rest = log_probs.scatter(-1, ids, float("-inf"))
    return torch.stack([(rest / temperature).logsumexp(-1) for temperature in TEMPERATURES], dim=-1).float()


def check_temperature(temperature: float) -> None:
    """Refuse a temperature below those that are kept.

    Raises:
        ValueError: it is.
    """
    if temperature < TEMPERATURES[-1]:
        raise ValueError(
            f"temperature {temperature} is below {TEMPERATURES[-1]}, the lowest at which a teacher's cache knows what its tail weighs: raise "
            "it, or use a live teacher"
        )


def _points(masses: Tensor, others: int) -> tuple[list[float], list[Tensor]]:
    zero = torch.full_like(masses[..., 0], math.log(others))
    return [0.0, *(1 / temperature for temperature in TEMPERATURES)], [zero, *masses.unbind(-1)]


def _piece(inverses: list[float], inverse: float) -> int:
    """The piece that holds an inverse temperature."""
    return next(place for place in range(1, len(inverses)) if inverse <= inverses[place] * (1 + 1e-12)) - 1


def _line(inverses: list[float], values: list[Tensor], piece: int, inverse: float) -> Tensor:
    low, high = inverses[piece], inverses[piece + 1]
    share = (inverse - low) / (high - low)
    return values[piece + 1] if share == 1 else values[piece] + (values[piece + 1] - values[piece]) * share


def tail_at(masses: Tensor, others: int, temperature: float) -> Tensor:
    """`[N]`: phi at a temperature.

    Args:
        masses: `[N, len(TEMPERATURES)]` of [`tail_masses`].
        others: tokens in the tail.
        temperature: at least the last of `TEMPERATURES`.
    """
    check_temperature(temperature)
    inverses, values = _points(masses, others)
    return _line(inverses, values, _piece(inverses, 1 / temperature), 1 / temperature)


def tail_error(masses: Tensor, others: int, temperature: float) -> Tensor:
    """`[N]`: by how much [`tail_at`] is too large at most. A convex function lies above the lines through its neighbouring pieces.

    Args: see [`tail_at`].
    """
    inverses, values = _points(masses, others)
    piece = _piece(inverses, 1 / temperature)
    neighbours = [place for place in (piece - 1, piece + 1) if 0 <= place < len(inverses) - 1]
    lines = [_line(inverses, values, place, 1 / temperature) for place in neighbours]
    least = torch.stack(lines).amax(0)
    return (tail_at(masses, others, temperature) - least).clamp_min(0)
