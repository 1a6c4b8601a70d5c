"""Tasks of one's own: a YAML file instead of a line of code."""

import json

import pytest

from hf_bitdistill.cli.main import main
from hf_bitdistill.data import TASKS, build_dataset, get_task, load_task, load_task_dataset
from hf_bitdistill.data.tasks import task_of, task_values


TASK = """
prompt: "Ticket: {subject}\\n{body}\\nTeam (billing, technical or sales):"
document: body
target: team
labels: {B: billing, T: technical, S: sales}
max_length: 64
"""

ROWS = [
    ("late fee", "why do I pay twice ?", "B"),
    ("no start", "the robot stands still .", "T"),
    ("price", "what does a plant cost ?", "S"),
]


def write_csv(path, rows=ROWS):
    path.write_text("subject,body,team\n" + "".join(f"{','.join(row)}\n" for row in rows))
    return path


@pytest.fixture
def task_file(tmp_path):
    path = tmp_path / "tickets.yaml"
    path.write_text(TASK)
    return path


def test_a_task_of_ones_own(task_file, tmp_path, tiny_tokenizer):
    task = get_task(str(task_file))
    assert (task.name, task.kind, task.metric) == ("tickets", "classification", "accuracy")
    assert (task.text_fields, task.document_field, task.max_length) == (("subject", "body"), "body", 64)
    rows = load_task_dataset(task, data_files=write_csv(tmp_path / "train.csv"))
    assert rows["team"][:] == [0, 1, 2]
    built = build_dataset(task, rows, tiny_tokenizer, max_length=200)
    answers = [[token for token in labels if token != -100] for labels in built["labels"]]
    assert [tiny_tokenizer.decode(ids) for ids in answers] == [" billing</s>", " technical</s>", " sales</s>"]


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (["bad", "good"], "[bad, good]"),
        ([0, 1], "[bad, good]"),
        ([-1, 1], "{-1: bad, 1: good}"),
        (["x", "y"], "{x: bad, y: good}"),
    ],
)
def test_what_labels_may_be(tmp_path, values, labels):
    (tmp_path / "t.yaml").write_text(f'prompt: "{{text}} Tone:"\ntarget: tone\nlabels: {labels}\n')
    rows = [{"text": "a", "tone": value} for value in values]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = load_task(tmp_path / "t.yaml")
    assert load_task_dataset(task, data_dir=tmp_path)["tone"][:] == [0, 1]
    assert task.label_words == ("bad", "good")


def test_a_text_answer(tmp_path):
    (tmp_path / "t.yaml").write_text('prompt: "{question}\\nAnswer:"\ntarget: answer\n')
    task = load_task(tmp_path / "t.yaml")
    assert (task.kind, task.metric) == ("summarization", "rouge")


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("X", r"row 3 has the label 'X' in column 'team'; task tickets knows B, T, S"),
        ("", r"row 3 has no value in column 'team'"),
    ],
)
def test_unknown_labels_are_named(task_file, tmp_path, label, message):
    path = write_csv(tmp_path / "train.csv", [*ROWS, ("a", "b", label)])
    with pytest.raises(ValueError, match=message):
        load_task_dataset(get_task(str(task_file)), data_files=path)


def test_regression_is_refused_with_a_reason(task_file, tmp_path):
    path = tmp_path / "train.csv"
    path.write_text("subject,body,team\na,b,0.5\nc,d,0.25\n")
    with pytest.raises(
        ValueError, match=r"floating-point numbers, and a number is no class: regression is not supported"
    ):
        load_task_dataset(get_task(str(task_file)), data_files=path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("target: a", "prompt is missing"),
        ('prompt: "{a}:"', "target is missing"),
        ('prompt: "{a}:"\ntarget: b\nlabel: [x, y]', "unknown key 'label'; did you mean 'labels'"),
        ('prompt: "{a}:"\ntarget: b\nlabels: [yes, no]', "YAML reads a bare yes, no, true or false as True"),
        ('prompt: "{a}:"\ntarget: b\nlabels: [x]', "two or more different words"),
        ('prompt: "{a}:"\ntarget: b\nmax_length: long', "max_length must be a int, it is 'long'"),
        ('prompt: "Tone:"\ntarget: b', "must name columns in braces"),
        ('prompt: "{a}: "\ntarget: b', "without white space"),
        ('prompt: "{a}:"\ntarget: a', "is part of the prompt"),
        ('prompt: "{a}:"\ntarget: b\ndocument: c', "is not in the prompt"),
        (
            'prompt: "{a}:"\ntarget: b\nlabels: [x, y]\nmetric: acuracy',
            "'acuracy' is none of labels; those are accuracy, f1",
        ),
        ('prompt: "{a}:"\ntarget: b\nlabels: [x, y]\nmetric: rouge', "'rouge' is none of labels"),
        (
            'prompt: "{a}:"\ntarget: b\nmetric: f1',
            "none of texts; those are rouge, exact_match, token_accuracy, perplexity",
        ),
        ("- a\n- b", "must map keys to values"),
        ("prompt: [", "not valid YAML"),
    ],
)
def test_what_is_wrong_with_a_task_file_is_named(tmp_path, text, message):
    path = tmp_path / "t.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        load_task(path)
    assert str(path) in str(caught.value)
    with pytest.raises(FileNotFoundError, match="no task file"):
        get_task("gone.yaml")


def test_evaluate_takes_a_task_file(task_file, tmp_path, tiny_tokenizer, tiny_llama_config, capsys):
    from transformers import LlamaForCausalLM

    LlamaForCausalLM(tiny_llama_config).save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    write_csv(tmp_path / "validation.csv")
    options = ["--task", str(task_file), "--data_dir", str(tmp_path), "--max_length", "128"]
    assert main(["evaluate", "--model_name_or_path", str(tmp_path / "model"), *options]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["task"], result["n"]) == ("tickets", 3)


def test_a_task_as_values(task_file):
    values = [get_task(str(task_file)), *TASKS.values()]
    for task in values:
        again = task_of(json.loads(json.dumps(task_values(task))), "file")
        assert again == task
    bad = {**task_values(values[0]), "prompt": "no column"}
    with pytest.raises(ValueError, match="there: prompt must name columns"):
        task_of(bad, "there")
