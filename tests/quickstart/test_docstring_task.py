"""Building the task, and scoring its answers."""

from __future__ import annotations

import math

import pytest
import torch

from hf_bitdistill.quickstart.corpus import CorpusError, Document, paragraph_key, split_of
from hf_bitdistill.quickstart.scoring import AnswerScores, chance_level, paired_difference, score_answers
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


def test_scores_against_an_independent_computation(base_folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    model = AutoModelForCausalLM.from_pretrained(base_folder).eval()
    rows = build_examples(invented(400), {"train": 7}, smallest=1)["train"]
    scores = score_answers(model, tokenizer, rows, 96, batch_size=3, progress=False)
    for index, row in enumerate(rows):
        prompt = tokenizer(f"{row['signature']}\nSummary:")["input_ids"]
        answer = [*tokenizer(f" {row['summary']}")["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        log_probs = logits.log_softmax(-1)
        assert scores.tokens[index] == len(answer)
        assert scores.correct[index] == sum(logits.argmax(-1) == torch.tensor(answer))
        assert scores.nll[index] == pytest.approx(-sum(log_probs[i, t].item() for i, t in enumerate(answer)), rel=1e-4)


def test_chance_level(base_folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    rows = build_examples(invented(100), {"train": 40}, smallest=1)["train"]
    chance = chance_level(rows, rows, tokenizer, 96)
    assert 0 < chance.accuracy < 0.5
    assert 1 < chance.perplexity < len(tokenizer)


def test_errors_of_accuracies():
    scores = AnswerScores([1] * 100, [1] * 50 + [0] * 50, [math.log(2)] * 100)
    assert scores.accuracy == 0.5
    assert scores.standard_error == pytest.approx(0.05)  # of 100 independent tokens
    assert scores.perplexity == pytest.approx(2)
    # Tokens that always go together carry no more information than one of them.
    together = AnswerScores([4] * 100, [4] * 50 + [0] * 50, [0.0] * 100)
    assert together.standard_error == pytest.approx(0.05)
    assert paired_difference(scores, scores) == (0.0, 0.0)
    worse = AnswerScores([1] * 100, [1] * 40 + [0] * 60, [0.0] * 100)
    mean, error = paired_difference(worse, scores)
    assert mean == pytest.approx(-0.1)
    assert error == pytest.approx(0.03)


def test_batches_hold_similar_lengths():
    from hf_bitdistill.quickstart.stages import batch_order

    lengths = [(7 * i) % 90 + 10 for i in range(333)]
    order = batch_order(lengths, 8, seed=0)
    assert sorted(order) == list(range(333))
    assert order == batch_order(lengths, 8, seed=0) != batch_order(lengths, 8, seed=1)
    batches = [[lengths[row] for row in order[start : start + 8]] for start in range(0, 328, 8)]
    assert sum(max(batch) - min(batch) for batch in batches) / len(batches) < 10
    firsts = [batch[0] for batch in batches]
    assert firsts != sorted(firsts) and firsts != sorted(firsts, reverse=True)
