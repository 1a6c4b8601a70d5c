"""Building the task."""

from __future__ import annotations

import pytest

from hf_bitdistill.quickstart.corpus import CorpusError, Document, paragraph_key, split_of
from hf_bitdistill.quickstart.task import build_examples, summary_line


WORDS = [
    "alpha",
    "beta",
    "gamma",
    "delta",
    "epsilon",
    "zeta",
    "eta",
    "theta",
    "iota",
    "kappa",
    "lambda",
    "omicron",
    "sigma",
    "upsilon",
    "omega",
]


def invented(count: int) -> list[Document]:
    """Documented functions with different first words."""
    return [
        Document("python", (f"{WORDS[i % 15]} {WORDS[i // 15 % 15]} {WORDS[i // 225]} of things.",), f"def f{i}(x)")
        for i in range(count)
    ]


def test_summary_line():
    def line(text: str, signature: str = "def f(x)") -> str | None:
        return summary_line(Document("python", (text, "More text."), signature))

    assert line("Return the sum of\n    two numbers. They are added.") == "Return the sum of two numbers."
    assert line("Return the value, e.g. a number of things") == "Return the value, e.g."
    assert line("Return the sum of two numbers.", signature="") is None
    assert line("Return it.") is None
    assert line(">>> f(1) and some more words") is None
    assert line("word " * 30) is None
    assert line("f(a=1, b=2, c=3) -> [1, 2, 3], {4}") is None


def test_examples_are_separate_and_reproducible():
    documents = invented(1500)
    sizes = {"train": 500, "validation": 20, "test": 100}
    examples = build_examples(documents, sizes)
    assert {split: len(rows) for split, rows in examples.items()} == sizes
    for split, rows in examples.items():
        assert {split_of(text) for text in rows["summary"]} == {split}
    assert build_examples(documents, sizes)["train"]["summary"] == examples["train"]["summary"]
    assert build_examples(documents, sizes, seed=1)["train"]["summary"] != examples["train"]["summary"]


def test_documentation_that_begins_alike_counts_once():
    documents = invented(300)
    repeated = [Document("numpy", document.paragraphs, "def other(y)") for document in documents]
    summaries = build_examples([*documents, *repeated], {"train": 10_000})["train"]["summary"]
    assert len({paragraph_key(text) for text in summaries}) == len(summaries) <= 300


def test_too_little_text_is_an_error():
    with pytest.raises(CorpusError, match="documented functions"):
        build_examples(invented(30), {"test": 500})
