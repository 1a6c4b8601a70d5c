"""Which rows a model is measured on."""

import json

import pytest
from datasets import Dataset

from hf_bitdistill.data import get_task
from hf_bitdistill.evaluation.rows import load_rows, rows_to_measure
from hf_bitdistill.evaluation.score_record import Measurement


REVIEWS = Measurement(task=get_task("sst2"), dataset="reviews")


def rows(sentences, labels):
    return Dataset.from_dict({"sentence": sentences, "label": labels})


def test_rows_that_cannot_be_measured_are_left_out_with_a_word(tiny_tokenizer):
    measured, said = rows_to_measure(rows(["a", " ", "c", "d"], [0, 1, None, 1]), REVIEWS, tiny_tokenizer)
    assert measured["sentence"] == ["a", "d"] and measured["label"] == [0, 1]
    assert said == "of 4 rows to measure on, not measured: 1 empty text, 1 without label"
    assert rows_to_measure(rows(["a", "b"], [0, 1]), REVIEWS, tiny_tokenizer)[1] is None


def test_too_many_are_refused(tiny_tokenizer):
    other = rows(["a", "b", "c"], [0, 1, 7])
    with pytest.raises(
        ValueError, match=r"reviews, rows to measure on: 1 of 3 rows .* a label that is none of the task's.* 10%"
    ):
        rows_to_measure(other, REVIEWS, tiny_tokenizer, 0.1)
    found, said = rows_to_measure(other, REVIEWS, tiny_tokenizer)
    assert len(found) == 2 and "none of the task's" in said
    with pytest.raises(ValueError, match="no row can be used"):
        rows_to_measure(rows(["a", "b"], [-1, -1]), REVIEWS, tiny_tokenizer)


def test_texts_that_are_blank_are_not_measured(tiny_tokenizer):
    how = Measurement("text", dataset="stories", max_length=32)
    texts = ["the robot waters a green plant .", " \n", None]
    measured, said = rows_to_measure(Dataset.from_dict({"text": texts}), how, tiny_tokenizer)
    assert said == "of 3 rows to measure on, not measured: 2 empty text"
    whole, _ = rows_to_measure(Dataset.from_dict({"text": texts[:1]}), how, tiny_tokenizer)
    assert measured["input_ids"] == whole["input_ids"]


def test_rows_that_could_not_be_read_are_told(tmp_path, tiny_tokenizer, caplog):
    lines = [
        json.dumps({"sentence": f"caf\u00e9 {i}", "label": i % 2}, ensure_ascii=False).encode() for i in range(12)
    ]
    lines[4] = lines[4].replace("\u00e9".encode(), b"\xe9")  # Latin-1
    (tmp_path / "validation.jsonl").write_bytes(b"\n".join(lines))
    (tmp_path / "train.jsonl").write_bytes(lines[0])
    found, _ = load_rows(Measurement(task=get_task("sst2"), dataset=str(tmp_path)), tiny_tokenizer)
    assert len(found) == 11 and "left out when it was read: 1 not UTF-8" in caplog.text
