import pickle

import pytest

from hf_bitdistill.data import TASKS, get_task


LABEL_WORDS = {
    "sst2": ("negative", "positive"),
    "mnli": ("entailment", "neutral", "contradiction"),
    "rte": ("entailment", "not_entailment"),
    "qnli": ("entailment", "not_entailment"),
}


def test_the_six_tasks():
    assert list(TASKS) == ["sst2", "mnli", "rte", "qnli", "cnn_dailymail", "xsum"]
    for name, words in LABEL_WORDS.items():
        task = get_task(name)
        assert (task.kind, task.metric, task.hub_id, task.hub_config) == (
            "classification",
            "accuracy",
            "nyu-mll/glue",
            name,
        )
        assert task.label_words == words
        assert task.id2label == dict(enumerate(words))
    assert (TASKS["cnn_dailymail"].hub_id, TASKS["cnn_dailymail"].hub_config) == ("abisee/cnn_dailymail", "3.0.0")
    assert (TASKS["xsum"].hub_id, TASKS["xsum"].hub_config) == ("EdinburghNLP/xsum", None)
    assert TASKS["mnli"].splits["validation"] == "validation_matched"


def test_unknown_task_names_the_tasks():
    with pytest.raises(
        ValueError, match="unknown task 'sst3'; the tasks are sst2, mnli, rte, qnli, cnn_dailymail, xsum"
    ):
        get_task("sst3")


@pytest.mark.parametrize("name", list(TASKS))
def test_prompt_holds_every_text_and_ends_where_the_answer_begins(name):
    task = TASKS[name]
    example = {field: f"<{field} {{braces}} and %s>" for field in task.text_fields}
    prompt = task.format_prompt(example)
    assert all(text in prompt for text in example.values())
    assert prompt.endswith(task.answer_anchor)
    assert prompt == prompt.rstrip()
    assert task.document_field in task.text_fields


def test_tasks_are_constants_that_can_be_pickled():
    task = get_task("mnli")
    with pytest.raises(TypeError):
        task.splits["train"] = "other"
    with pytest.raises(AttributeError):
        task.name = "other"
    assert pickle.loads(pickle.dumps(task)) == task
