"""Rules on made-up rows whose answers are known."""

import pytest

from hf_bitdistill.recipe.measure import Measured
from hf_bitdistill.recipe.rules import Try, best_rate, gap, goes_on, is_no_worse, outlook, rate_beyond


def rows(*losses, right=None):
    right = [1] * len(losses) if right is None else right
    return Measured([1] * len(losses), list(right), list(losses), [[each] for each in right])


TEACHER = rows(0.1, 0.2, 0.1, 0.2)
FAR, NEAR, NEARER = rows(0.9, 1.0, 0.9, 1.1), rows(0.5, 0.6, 0.5, 0.7), rows(0.3, 0.4, 0.3, 0.5)


def test_it_goes_on_while_a_gap_closes():
    assert goes_on([Try(1, FAR)], TEACHER)[0]
    assert goes_on([Try(1, FAR), Try(2, NEAR)], TEACHER)[0]
    # Nothing is left; or what was closed is noise.
    assert not goes_on([Try(1, rows(0.1, 0.2, 0.3, 0.0))], TEACHER)[0]
    noisy = rows(0.2, 1.3, 0.3, 2.0)
    assert not goes_on([Try(1, FAR), Try(2, noisy)], TEACHER)[0]


def test_the_next_doubling():
    found = outlook([Try(100, FAR), Try(200, NEAR)], TEACHER)
    # 0.825 -> 0.425: half of that again, nearly.
    assert found["left"] == pytest.approx(0.425) and found["effort"] == 400
    assert found["closes"] == pytest.approx(0.425 * (1 - 0.425 / 0.825))
    assert outlook([Try(100, FAR)], TEACHER) is None
    assert outlook([Try(100, NEAR), Try(200, FAR)], TEACHER)["closes"] == 0
    # Four times the effort closed that much: twice it closes the square root's share. What took no effort says nothing.
    later = outlook([Try(0, FAR), Try(100, FAR), Try(400, NEAR)], TEACHER)
    assert later["closes"] == pytest.approx(0.425 * (1 - (0.425 / 0.825) ** 0.5)) and later["effort"] == 800
    assert outlook([Try(0, FAR), Try(100, NEAR)], TEACHER) is None


def test_a_distillation_that_harms_is_not_kept():
    before = rows(0.5, 0.5, 0.5, 0.5, right=[1, 1, 0, 1])
    assert is_no_worse(rows(0.9, 0.9, 0.9, 0.9), before)[0]
    assert not is_no_worse(rows(0.1, 0.1, 0.1, 0.1, right=[0, 0, 0, 1]), before)[0]
    assert is_no_worse(rows(0.4, 0.4, 0.4, 0.4, right=[1, 0, 1, 1]), before)[0]
    assert not is_no_worse(rows(0.6, 0.5, 0.5, 0.5, right=[1, 0, 1, 1]), before)[0]
    # Two rows won and one lost is noise: the loss decides.
    before = rows(0.5, 0.5, 0.5, 0.5, 0.5, right=[1, 1, 0, 0, 1])
    assert not is_no_worse(rows(0.6, 0.6, 0.6, 0.6, 0.6, right=[1, 0, 1, 1, 1]), before)[0]
    assert is_no_worse(rows(0.4, 0.4, 0.4, 0.4, 0.4, right=[0, 0, 0, 1, 1]), before)[0]


def test_rates_and_gap():
    assert best_rate({1e-4: FAR, 2e-4: NEARER, 3e-4: NEAR}) == 2e-4
    # Past the edge, until the best has neighbours on both sides.
    assert rate_beyond({1e-4: NEAR, 4e-4: FAR}) == pytest.approx(2.5e-5)
    assert rate_beyond({1e-4: FAR, 4e-4: NEAR}) == pytest.approx(1.6e-3)
    assert rate_beyond({1e-4: FAR, 4e-4: NEARER, 1.6e-3: NEAR}) is None
    found = gap(rows(0.2, 0.3, 0.2, 0.3, right=[1, 0, 1, 1]), TEACHER)
    assert found["loss"] == {"value": pytest.approx(0.1), "stderr": pytest.approx(0.0, abs=1e-12)}
    assert found["accuracy"]["value"] == pytest.approx(-0.25) and found["agreement"] == 0.75


def test_ratio_of_tokens():
    measured = Measured([2, 4], [1, 3], [2.0, 4.0], [[1, 2], [1, 2, 3, 4]])
    assert measured.accuracy == pytest.approx(4 / 6) and measured.loss == 1.0
    other = Measured([2, 4], [1, 3], [2.0, 4.0], [[1, 9], [1, 2, 3, 9]])
    assert measured.agreement(other) == pytest.approx(4 / 6)
    assert Measured.from_dict(measured.to_dict()) == measured
