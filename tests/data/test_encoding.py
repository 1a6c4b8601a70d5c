import pytest
from datasets import Dataset

from hf_bitdistill.data import build_dataset
from hf_bitdistill.data.conversations import TOO_LONG
from hf_bitdistill.data.encoding import ONLY_PROMPT, encode_rows, trained_tokens
from hf_bitdistill.data.recognition import Recognized, recognize
from hf_bitdistill.data.tasks import Task


def test_of_a_task_every_row_is_used_shortened_or_counted(tiny_tokenizer):
    rows = [("a film .", "a warm film .")] * 18
    rows.insert(5, ("slow " * 60, "a film ."))
    rows.append(("a film .", "slow " * 60))
    dataset = Dataset.from_dict(
        {
            "premise": [premise for premise, _ in rows],
            "hypothesis": [hypothesis for _, hypothesis in rows],
            "label": ["no", "yes"] * 10,
        }
    )
    recognized = recognize(dataset, "x")
    whole = encode_rows(recognized, dataset, tiny_tokenizer, 1000)
    assert not whole.left_out and whole.shortened == 0 and len(whole.dataset) == 20
    assert whole.lengths == [len(ids) for ids in whole.dataset["input_ids"]]
    limit = max(whole.lengths[:5])
    cut = encode_rows(recognized, dataset, tiny_tokenizer, limit)
    # The premise can be cut; of the last row it would be gone before the hypothesis fits.
    assert cut.left_out == {ONLY_PROMPT: 1} and cut.shortened == 1
    assert cut.lengths == whole.lengths and len(cut.dataset) == 19
    # Cut or not, they are the rows in their order.
    assert cut.dataset[:] == build_dataset(recognized.task, cut.rows, tiny_tokenizer, limit)[:]
    assert cut.rows["premise"][:] == dataset["premise"][:19]
    assert max(len(ids) for ids in cut.dataset["input_ids"]) <= limit
    assert all(trained_tokens(labels) >= 2 for labels in cut.dataset["labels"])


def test_an_answer_without_room_is_too_long(tiny_tokenizer):
    task = Task("t", "Text: {text}\nSummary:", "summary")
    dataset = Dataset.from_dict({"text": ["a film ."] * 3, "summary": ["short", "slow " * 90, "short"]})
    encoded = encode_rows(Recognized("task", task.columns, task), dataset, tiny_tokenizer, 64)
    assert encoded.left_out == {TOO_LONG: 1} and len(encoded.dataset) == 2
    with pytest.raises(ValueError, match="x: no example fits max_length 4"):
        encode_rows(Recognized("task", task.columns, task), dataset, tiny_tokenizer, 4, source="x")


def test_completions_beyond_the_limit_are_counted(tiny_tokenizer):
    dataset = Dataset.from_dict({"prompt": ["Q"] * 3 + [""], "completion": ["A", "slow " * 90, "A", "A"]})
    kind = Recognized("prompt_completion", ("prompt", "completion"))
    encoded = encode_rows(kind, dataset, tiny_tokenizer, 32)
    assert encoded.left_out == {"empty": 1, TOO_LONG: 1} and len(encoded.lengths) == 3
    with pytest.raises(ValueError, match="x: no example is left"):
        encode_rows(kind, dataset.select([1]), tiny_tokenizer, 32, source="x")
    with pytest.raises(ValueError, match="packed"):
        encode_rows(Recognized("text", ("prompt",)), dataset, tiny_tokenizer)
