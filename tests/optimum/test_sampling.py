"""Drawing a token: the distribution is that of transformers' processors, whatever path finds it."""

import math

import pytest
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from optimum.bitnet.sampling import DrawToken, _largest, draw_in_processors


DRAWS = 40_000
IDS = torch.zeros((1, 1), dtype=torch.int64)


def processors(temperature=None, top_k=None, top_p=None, before=(), behind=()) -> LogitsProcessorList:
    made = list(before)
    if temperature:
        made.append(TemperatureLogitsWarper(temperature))
    if top_k:
        made.append(TopKLogitsWarper(top_k))
    if top_p:
        made.append(TopPLogitsWarper(top_p))
    return LogitsProcessorList([*made, *behind])


def config(**options) -> GenerationConfig:
    return GenerationConfig(do_sample=True, **options)


def scores(vocabulary: int, spread: float) -> torch.Tensor:
    return spread * torch.randn((1, vocabulary), generator=torch.Generator().manual_seed(vocabulary))


def drawn(made: LogitsProcessorList, given: torch.Tensor, count: int) -> torch.Tensor:
    """Tokens of `count` draws."""
    torch.manual_seed(0)
    return made(IDS.expand(count, -1), given.expand(count, -1)).argmax(dim=-1)


# The larger vocabulary, whose likeliest tokens are looked for first, is dear: of it what takes another path there.
@pytest.mark.parametrize(
    ("options", "vocabulary"),
    [
        ({}, 50),
        ({"temperature": 0.7}, 50),
        ({"top_k": 5}, 50),
        ({"top_p": 0.8}, 50),
        ({"top_p": 0.01}, 50),
        ({"top_p": 0.7, "behind": [MinPLogitsWarper(0.2)]}, 50),
        ({}, 1200),
        ({"top_k": 5}, 1200),
        ({"temperature": 1.5, "top_k": 20, "top_p": 0.9}, 1200),
        ({"top_p": 0.8}, 1200),
    ],
)
def test_distribution(options, vocabulary):
    given = scores(vocabulary, 2.0)
    plain = processors(**options)
    expected = torch.softmax(plain(IDS, given), dim=-1)[0]
    made, greedy = draw_in_processors(plain, config())
    assert not greedy.do_sample
    counts = torch.bincount(drawn(made, given, DRAWS), minlength=vocabulary)
    assert counts[expected == 0].sum() == 0
    likely = expected > 1e-3  # else the normal approximation says little
    deviation = (counts[likely] - DRAWS * expected[likely]) / (
        DRAWS * expected[likely] * (1 - expected[likely]) + 1e-9
    ).sqrt()
    assert deviation.abs().max() < 5 or expected.max() > 1 - 1e-6
    assert abs(int(counts[~likely].sum()) - DRAWS * float(expected[~likely].sum())) < 5 * math.sqrt(DRAWS) + 1


@pytest.mark.parametrize(("spread", "whole"), [(8.0, False), (0.01, True)])
def test_top_p_of_a_large_vocabulary(spread, whole, monkeypatch):
    """The likeliest 1024 tokens are looked at first, and all of them where the distribution is too flat for that."""
    given = scores(10_000, spread)
    made, _ = draw_in_processors(processors(top_p=0.9), config())
    asked = []
    among = DrawToken._among

    def spy(self, values, count, total):
        asked.append(count)
        return among(self, values, count, total)

    monkeypatch.setattr(DrawToken, "_among", spy)
    tokens = drawn(made, given, 200)
    assert asked == ([1024, 10_000] if whole else [1024])
    kept = processors(top_p=0.9)(IDS, given)[0].isfinite()
    assert kept[tokens].all()
    assert len(set(tokens.tolist())) > 1


def test_rows_are_their_own():
    given = torch.full((2, 300), -10.0)
    given[0, 7] = given[1, 250] = 50.0
    for made in (DrawToken(), DrawToken(top_k=3), DrawToken(top_p=0.5), DrawToken(top_k=3, top_p=0.5)):
        out = made(IDS.expand(2, -1), given)
        assert out.argmax(dim=-1).tolist() == [7, 250]
        assert (out.isfinite().sum(dim=-1) == 1).all()


@pytest.mark.parametrize(("size", "count"), [(64, 3), (640, 2), (700, 2), (1023, 3), (5000, 7), (5000, 5000)])
def test_largest(size, count):
    given = torch.randn((3, size), generator=torch.Generator().manual_seed(size))
    values, tokens = _largest(given, count)
    assert torch.equal(values, torch.topk(given, count).values)
    assert torch.equal(given.gather(1, tokens), values)


def test_what_cannot_be_replaced_stays():
    kept = RepetitionPenaltyLogitsProcessor(1.1)
    made, _ = draw_in_processors(processors(temperature=0.5, top_k=4, before=[kept]), config())
    assert made[0] is kept and len(made) == 2
    assert (made[1].temperature, made[1].top_k, made[1].top_p) == (0.5, 4, None)
    # A processor behind top p sees scores, so top p stays where it is.
    behind = MinPLogitsWarper(0.1)
    made, _ = draw_in_processors(processors(top_p=0.5, behind=[behind]), config())
    assert [type(p) for p in made] == [TopPLogitsWarper, MinPLogitsWarper, DrawToken]
    for options in (GenerationConfig(do_sample=False), config(return_dict_in_generate=True, output_scores=True)):
        plain = processors(top_k=4)
        made, same = draw_in_processors(plain, options)
        assert made is plain and same is options


@pytest.mark.parametrize("draw", [DrawToken(), DrawToken(top_k=3), DrawToken(top_p=0.5)])
@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_nothing_to_draw(draw, value):
    with pytest.raises(ValueError, match="cannot sample"):
        draw(IDS, torch.full((1, 300), value))
