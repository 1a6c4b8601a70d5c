"""How many candidates of prompt lookup are read."""

import pytest
import torch

from optimum.bitnet.candidates import Candidates, NumberOfCandidates, Price


class Continuation:
    """Proposes what follows in a fixed text, wrong where it is told to be."""

    def __init__(self, text, count, wrong):
        self.text, self.num_output_tokens, self.wrong = text, count, wrong

    def get_candidates(self, input_ids):
        start = input_ids.shape[1]
        place = slice(start, start + self.num_output_tokens)
        proposed = self.text[place].clone()
        proposed[self.wrong[place]] += 1
        return torch.cat([input_ids, proposed[None]], dim=1), None

    def update_candidate_strategy(self, *args):
        pass


def steps(wrong, most=10, adapts=True):
    """How many tokens are read a step, and how many are right, in a text whose next tokens are guessed wrong where `wrong` says so."""
    text = torch.arange(len(wrong)) * 2
    candidates = Candidates(Continuation(text, most, torch.tensor(wrong)), 10_000, adapts)
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


def test_the_price_is_what_steps_took():
    price = Price()
    assert price() == Price()()
    for _ in range(3):
        price.see(0, 0.010)
        price.see(4, 0.018)
    assert price() == pytest.approx(0.2)
    for _ in range(200):
        price.see(0, 0.010)
        price.see(5, 0.035)
    assert price() == pytest.approx(0.5, rel=0.01)
    for seconds in (0.0, 1e-9, 5.0):  # a clock that stood still, or a program that was stopped
        for _ in range(200):
            price.see(2, seconds)
        assert 0 < price() <= 2


def test_fewer_are_worth_it_where_each_costs_more():
    def best(price):
        number = NumberOfCandidates(10, lambda: price)
        for _ in range(20):
            number.see(4, 2)
        return number.best()

    assert best(0.02) > best(0.15) > best(0.4) > best(2.0) == 0


def test_drawn_text_does_not_depend_on_clocks(pair, monkeypatch):
    _, native = pair(vocab_size=16, max_position_embeddings=256)
    tokens = torch.tensor([[3, 4, 5, 6] * 4])
    texts = []
    see = Price.see
    for seconds in (1e-3, 1.0):
        # Whatever a clock says of a candidate.
        monkeypatch.setattr(
            Price, "see", lambda self, offered, _, seconds=seconds: see(self, offered, seconds * (1 + offered))
        )
        torch.manual_seed(3)
        options = {"prompt_lookup_num_tokens": 8, "num_assistant_tokens_schedule": "heuristic", "do_sample": True}
        texts.append(native.generate(tokens, max_new_tokens=60, **options).tolist())
    assert texts[0] == texts[1]


def test_the_price_is_known_to_the_next_text(pair):
    _, native = pair(max_position_embeddings=256)
    options = {"prompt_lookup_num_tokens": 4, "num_assistant_tokens_schedule": "heuristic", "max_new_tokens": 40}
    tokens = torch.tensor([[5, 6, 7, 8] * 4])
    first = native.generate(tokens, do_sample=False, **options)
    price = native._candidate_prices[native.decoder.num_threads]
    assert price._alone[0] + price._more[0] > 3
    seen = [*price._alone, *price._more]
    native.generate(tokens, do_sample=True, **options)  # drawn text neither reads nor changes it
    assert [*price._alone, *price._more] == seen
    assert torch.equal(native.generate(tokens, do_sample=False, **options), first)
    assert [*price._alone, *price._more] != seen and list(native._candidate_prices.values()) == [price]


def test_a_prompt_that_is_padded_on_the_right(pair):
    """The first of the candidates' columns is padding then: what comes next is said by the last token before it."""
    _, native = pair()
    ids = torch.tensor([[5, 6, 7, 5, 6, 7, 5, 6]])
    padded = torch.cat([ids, torch.zeros(1, 3, dtype=torch.long)], dim=1)
    mask = torch.tensor([[1] * 8 + [0] * 3])
    options = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False}
    expected = native.generate(padded, **options)
    found = native.generate(padded, prompt_lookup_num_tokens=4, **options)
    assert torch.equal(found, expected)
    assert torch.equal(found[:, 11:], native.generate(ids, max_new_tokens=12, do_sample=False)[:, 8:])
