"""Token by token scores of answers, and their errors."""

import math

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_bitdistill.data.conversations import encode_completions
from hf_bitdistill.recipe.measure import Measured, measure_answers, unigram_accuracy


def made_up(tokens, correct, nll):
    return Measured(tokens, correct, nll, [[0] * count for count in tokens])


def test_answers_against_an_independent_computation(model):
    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded = AutoModelForCausalLM.from_pretrained(model).eval()
    rows = [{"prompt": f"the robot {word}", "completion": f" waters {word} plants"} for word in ("a", "red", "window")]
    measured = measure_answers(loaded, tokenizer, encode_completions(Dataset.from_list(rows), tokenizer, 64).dataset)
    for index, row in enumerate(rows):
        prompt, whole = (tokenizer(text)["input_ids"] for text in (row["prompt"], row["prompt"] + row["completion"]))
        answer = [*whole[len(prompt) :], tokenizer.eos_token_id]
        with torch.no_grad():
            logits = loaded(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        log_probs = logits.log_softmax(-1)
        assert measured.tokens[index] == len(answer) > 1
        assert measured.choices[index] == logits.argmax(-1).tolist()
        assert measured.correct[index] == sum(logits.argmax(-1) == torch.tensor(answer))
        nll = -sum(log_probs[place, token].item() for place, token in enumerate(answer))
        assert measured.nll[index] == pytest.approx(nll, rel=1e-4)


def test_chance():
    train = [[-100, 7, 7, 2], [-100, -100, 7, 2]]
    assert unigram_accuracy(train, [[-100, 7, 5, 2], [-100, 7]]) == pytest.approx(2 / 4)


def test_errors_of_accuracies():
    measured = made_up([1] * 100, [1] * 50 + [0] * 50, [math.log(2)] * 100)
    assert measured.accuracy == 0.5 and measured.perplexity == pytest.approx(2)
    assert measured.accuracy_error == pytest.approx(0.05)  # of 100 independent tokens
    # Tokens that always go together carry no more information than one of them.
    together = made_up([4] * 100, [4] * 50 + [0] * 50, [0.0] * 100)
    assert together.accuracy_error == pytest.approx(0.05)
    worse = made_up([1] * 100, [1] * 40 + [0] * 60, [0.0] * 100)
    difference = worse.accuracy_over(measured)
    assert (difference.value, difference.stderr) == (pytest.approx(-0.1), pytest.approx(0.03))
