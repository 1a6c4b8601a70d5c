"""How many candidates of prompt lookup are read."""

import pytest
import torch

from optimum.bitnet.candidates import Candidates, NumberOfCandidates


class Continuation:
    """Proposes what follows in a fixed text, wrong where it is told to be."""

    def __init__(self, text, count, wrong):
        self.text, self.count, self.wrong = text, count, wrong

    def get_candidates(self, input_ids):
        start = input_ids.shape[1]
        proposed = self.text[start : start + self.count].clone()
        proposed[self.wrong[start : start + self.count]] += 1
        return torch.cat([input_ids, proposed[None]], dim=1), None

    def update_candidate_strategy(self, *args):
        pass


def steps(wrong, most=10, adapts=True):
    """How many tokens are read a step, and how many are right, in a text whose next tokens are guessed wrong where `wrong` says so."""
    text = torch.arange(len(wrong)) * 2
    number = NumberOfCandidates(most) if adapts else None
    candidates = Candidates(Continuation(text, most, torch.tensor(wrong)), 10_000, number)
    length, found = 1, []
    while length + most + 1 < len(text):
        given, _ = candidates.get_candidates(text[None, :length])
        offered = given[0, length:]
        right = int(((offered != text[length : length + len(offered)]).cumsum(0) < 1).sum())
        length += right + 1
        candidates.update_candidate_strategy(text[None, :length], None, torch.tensor(right))
        found.append((len(offered), right))
    return found


def test_all_right():
    found = steps([False] * 200)
    assert 1 <= found[0][0] < 10 and [offered for offered, _ in found[4:]] == [10] * len(found[4:])


def test_all_wrong():
    found = steps([True] * 200)
    assert sum(offered for offered, _ in found) < 25 and all(offered == 0 for offered, _ in found[15:])


def test_it_comes_back():
    """After a long stretch without a right candidate, in which none is read, the next right ones are noticed."""
    found = steps([True] * 100 + [False] * 100)
    position, first = 1, None
    for offered, right in found:
        if position > 100 and offered and first is None:
            first = position
        position += right + 1
    assert first is not None and first < 110 and found[-1][0] == 10


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8, 0.95])
def test_it_costs_less_than_a_fixed_number(share):
    """In the units of its own price: never much worse than reading one token at a time, and better than always ten where few are right."""
    generator = torch.Generator().manual_seed(0)
    wrong = (torch.rand(4000, generator=generator) > share).tolist()

    def rate(found):
        tokens, price = sum(right + 1 for _, right in found), sum(1 + 0.15 * offered for offered, _ in found)
        return tokens / price

    adaptive, fixed = rate(steps(wrong)), rate(steps(wrong, adapts=False))
    assert adaptive > 0.97
    assert adaptive > fixed * (1.0 if share < 0.9 else 0.97)
