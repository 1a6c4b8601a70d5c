"""What a recorded measurement says of another one on the same rows."""

import math

import pytest

from hf_bitdistill.evaluation.score_record import Record


SCORES = {"task": "sst2", "accuracy": 0.8, "accuracy_stderr": 0.02, "f1": 0.7, "f1_stderr": math.nan, "n": 400}


@pytest.mark.parametrize(
    "accuracy, f1, expected",
    [
        (0.8, 0.7, {"accuracy": True, "f1": True}),
        (0.809, 0.7, {"accuracy": True, "f1": True}),  # within half of the standard error
        (0.811, 0.7, {"accuracy": False, "f1": True}),
        (0.8, 0.7006, {"accuracy": True, "f1": True}),  # without one: a thousandth
        (0.8, 0.7008, {"accuracy": True, "f1": False}),
    ],
)
def test_scores_agree_within_what_they_are_known_to(accuracy, f1, expected):
    assert Record(SCORES).agrees({"accuracy": accuracy, "f1": f1}) == expected


@pytest.mark.parametrize("now", [{}, {"accuracy": None, "f1": None}, {"accuracy": "0.8", "f1": []}])
def test_what_is_no_number_is_not_compared(now):
    assert Record(SCORES).agrees(now) == {}
    assert Record({**SCORES, "accuracy": None, "f1_stderr": None}).agrees({"accuracy": 0.8, "f1": 0.7}) == {}
