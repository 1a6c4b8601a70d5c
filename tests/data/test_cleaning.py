import json
from collections import Counter

import pytest
from datasets import Dataset

from hf_bitdistill.data.cleaning import (
    EMPTY,
    NO_ANSWER,
    NO_LABEL,
    NOT_UTF8,
    OTHER_LABEL,
    check_left_out,
    read_usable,
    usable_rows,
    usable_texts,
)
from hf_bitdistill.data.recognition import recognize
from hf_bitdistill.data.sources import load_examples
from hf_bitdistill.data.tasks import Task


WORDS = Task("t", "Text: {text}\nTone:", "label", ("bad", "good"), ("neg", "pos"))
IDS = Task("t", "Text: {text}\nTone:", "label", ("bad", "good"))
WRITTEN = Task("t", "Text: {text}\nSummary:", "summary")


def test_bad_cells_are_counted_by_kind_and_left_out():
    texts = ["a", None, "  \n", "b", "c", "d", "e", ""]
    labels = ["pos", "pos", "neg", None, "", "-1", "other", None]
    kept, left_out = usable_rows(Dataset.from_dict({"text": texts, "label": labels, "more": texts}), WORDS)
    # The last row is both empty and without label: it counts once.
    assert left_out == {EMPTY: 3, NO_LABEL: 3, OTHER_LABEL: 1}
    assert kept.to_dict() == {"text": ["a"], "label": [1]}


def test_numbers_as_labels():
    rows = Dataset.from_dict({"text": list("abcde"), "label": [1, -1, None, 2, 0]})
    kept, left_out = usable_rows(rows, IDS)
    assert left_out == {NO_LABEL: 2, OTHER_LABEL: 1}
    assert kept.to_dict() == {"text": ["a", "e"], "label": [1, 0]}


def test_written_answers():
    rows = Dataset.from_dict({"text": list("abc"), "summary": ["x", " ", None]})
    kept, left_out = usable_rows(rows, WRITTEN)
    assert left_out == {NO_ANSWER: 2} and kept["summary"][:] == ["x"]


def test_rows_of_a_selection_are_the_selection_s():
    rows = Dataset.from_dict({"text": ["a", None, "b", None], "label": ["pos", "neg", "neg", "pos"]})
    kept, left_out = usable_rows(rows.select([2, 0]), WORDS)
    assert not left_out and kept.to_dict() == {"text": ["b", "a"], "label": [0, 1]}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": [None, " "], "label": ["pos", "neg"]}, "x: no row can be used: 2 empty text"),
        ({"text": [1, 2], "label": ["pos", "neg"]}, "column 'text' must hold text, it holds int64"),
        ({"text": ["a", "b"], "label": [0.5, 1.0]}, "regression is not supported"),
        ({"text": ["a", "b"]}, "the column 'label' of task t is missing"),
    ],
)
def test_what_cannot_be_mended_is_refused(columns, message):
    with pytest.raises(ValueError, match=message):
        usable_rows(Dataset.from_dict(columns), WORDS, "x")


def test_texts_of_white_space_are_empty():
    texts = Dataset.from_dict({"body": ["a", " \n", "", None, "b"], "more": [1, 2, 3, 4, 5]})
    kept, left_out = usable_texts(texts, "body", "x")
    assert kept[:] == {"body": ["a", "b"]} and left_out == {EMPTY: 3}
    assert not usable_texts(texts.select([0, 4]), "body")[1]
    with pytest.raises(ValueError, match="x: no row can be used: 3 empty text"):
        usable_texts(texts.select([1, 2, 3]), "body", "x")
    with pytest.raises(ValueError, match="x has no column 'text'; it has body, more"):
        usable_texts(texts, "text", "x")


def test_too_many_are_refused_with_their_kinds():
    check_left_out({EMPTY: 1}, 10, "x")
    with pytest.raises(ValueError, match=r"x: 3 of 20 rows \(15.0%\).* 2 without label, 1 empty text"):
        check_left_out(Counter({EMPTY: 1, NO_LABEL: 2}), 20, "x")
    check_left_out({EMPTY: 1, NO_LABEL: 2}, 20, "x", limit=0.2)


@pytest.mark.parametrize("ending", ["jsonl", "csv", "tsv"])
def test_rows_that_are_not_utf8_are_left_out(tmp_path, ending):
    rows = [("caf\u00e9, of old", "good"), ("caf\u00e9 of dust", "bad"), ("tea", "good")]
    if ending == "jsonl":
        lines = [json.dumps({"text": t, "label": w}, ensure_ascii=False).encode() for t, w in rows]
    else:
        mark = "," if ending == "csv" else "\t"
        lines = [b"text" + mark.encode() + b"label", *(f'"{t}"{mark}{w}'.encode() for t, w in rows)]
    lines[-2] = lines[-2].replace("\u00e9".encode(), b"\xe9")  # Latin-1
    file = tmp_path / f"rows.{ending}"
    file.write_bytes(b"\n".join(lines) + b"\n")
    kept, left_out = read_usable([file])
    assert left_out == {NOT_UTF8: 1}
    assert kept["text"][:] == ["caf\u00e9, of old", "tea"]
    with pytest.raises(ValueError, match="not UTF-8"):
        load_examples(file)
    examples = load_examples(file, skip_undecodable=True)
    assert examples.left_out[0] == {NOT_UTF8: 1} and len(examples.train) + len(examples.validation) == 2


def test_another_fault_is_still_told(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"text": "a"}\n{"text": \n')
    with pytest.raises(ValueError, match="row 1 is not JSON"):
        read_usable([file])


def test_an_empty_cell_makes_no_quantity_of_whole_numbers(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("text,label\n" + "".join(f"text {i},{'' if i == 5 else i % 3}\n" for i in range(12)))
    rows, _ = read_usable([file])
    task = recognize(rows, "rows.csv").task
    assert task.label_words == ("0", "1", "2")
    kept, left_out = usable_rows(rows, task)
    assert left_out == {NO_LABEL: 1} and kept["label"][:4] == [0, 1, 2, 0]
