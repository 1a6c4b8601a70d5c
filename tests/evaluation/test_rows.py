"""Which rows a model is measured on."""

import pytest
from datasets import Dataset

from hf_bitdistill.data import get_task
from hf_bitdistill.evaluation.rows import rows_to_measure


def rows(sentences, labels):
    return Dataset.from_dict({"sentence": sentences, "label": labels})


def test_rows_that_cannot_be_measured_are_left_out_with_a_word(caplog):
    measured = rows_to_measure(rows(["a", " ", "c", "d"], [0, 1, None, 1]), get_task("sst2"), "reviews")
    assert measured["sentence"] == ["a", "d"] and measured["label"] == [0, 1]
    assert "reviews: of 4 rows to measure on, not measured: 1 empty text, 1 without label" in caplog.text
    caplog.clear()
    assert len(rows_to_measure(rows(["a", "b"], [0, 1]), get_task("sst2"), "reviews")) == 2 and not caplog.text


def test_too_many_are_refused(caplog):
    other = rows(["a", "b", "c"], [0, 1, 7])
    with pytest.raises(
        ValueError, match=r"reviews, rows to measure on: 1 of 3 rows .* a label that is none of the task's.* 10%"
    ):
        rows_to_measure(other, get_task("sst2"), "reviews", 0.1)
    assert len(rows_to_measure(other, get_task("sst2"), "reviews")) == 2 and "none of the task's" in caplog.text
    with pytest.raises(ValueError, match="no row can be used"):
        rows_to_measure(rows(["a", "b"], [-1, -1]), get_task("sst2"), "reviews")
