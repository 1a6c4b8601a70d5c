"""`bitdistill evaluate` without options: a student's folder knows what it was measured on, and only of itself."""

import json
import os
import shutil

import pytest
from transformers import AutoModelForCausalLM

from hf_bitdistill import BitNetConfig, apply_bitnet, pack
from hf_bitdistill.cli import evaluate as evaluate_command
from hf_bitdistill.cli.main import main
from hf_bitdistill.cli.scores import agreement
from hf_bitdistill.data import TASKS
from hf_bitdistill.evaluation.score_record import Measurement, Record, read_record


QUIET = ["--report_to", "none", "--disable_tqdm", "true", "--use_cpu", "true"]


def evaluate(capsys, *arguments):
    """Status, the result, and what is said beside it."""
    capsys.readouterr()
    status = main(["evaluate", *map(str, arguments)])
    captured = capsys.readouterr()
    said = [line for line in captured.err.splitlines() if "evaluation" not in line or line.startswith("bitdistill")]
    return status, json.loads(captured.out) if captured.out else None, "\n".join(said)


def write_rows(file, rows):
    file.parent.mkdir(exist_ok=True)
    file.write_text("\n".join(map(json.dumps, rows)))


@pytest.fixture
def data(tmp_path):
    rows = [{"sentence": f"a {['dull', 'fine'][i % 2]} film number {i} .", "label": i % 2} for i in range(20)]
    for split in ("train", "validation"):
        write_rows(tmp_path / "data" / f"{split}.jsonl", rows)
    return tmp_path / "data"


@pytest.fixture
def packed(teacher, tmp_path):
    """A packed student that nobody measured."""
    student = apply_bitnet(AutoModelForCausalLM.from_pretrained(teacher), BitNetConfig())
    pack(student).save_pretrained(tmp_path / "packed")
    for file in teacher.glob("tokenizer*"):
        shutil.copy(file, tmp_path / "packed")
    return tmp_path / "packed"


@pytest.fixture
def task_file(tmp_path):
    file = tmp_path / "tone.yaml"
    file.write_text('prompt: "{sentence}\\nTone:"\ntarget: label\nlabels: [bad, good]\nmax_length: 64\n')
    return file


def test_a_distilled_student_needs_no_options(teacher, data, task_file, tmp_path, capsys):
    student, packed = tmp_path / "student", tmp_path / "packed"
    models = ["--model_name_or_path", teacher, "--teacher_model_name_or_path", teacher, "--attention_layers", "-1"]
    options = ["--task", task_file, "--data_dir", data, "--max_eval_samples", 12, "--max_steps", 1]
    command = ["distill", *models, *options, "--output_dir", student, "--pack_to", packed, *QUIET]
    for folder in (student, packed):
        folder.mkdir()
        (folder / "README.md").write_text("# What I wrote\n")
    assert main([str(word) for word in command]) == 0
    for folder in (student, packed):
        assert (folder / "README.previous.md").read_text() == "# What I wrote\n"
        assert not (folder / "README.previous-2.md").exists()
    task_file.unlink()
    recorded = json.loads((student / "evaluation.json").read_text())
    assert recorded["measured"]["task"]["labels"] == ["bad", "good"]
    assert recorded["measured"]["by"] == "bitdistill distill" and recorded["n"] == 12
    card = (student / "README.md").read_text()
    assert "{sentence}\nTone:" in card and "Answers: bad, good." in card and "accuracy" in card
    for folder in (student, packed):
        status, result, said = evaluate(capsys, folder)
        assert (status, result["n"], result["accuracy"]) == (0, 12, recorded["accuracy"])
        assert "agrees with the accuracy" in said and "recorded by bitdistill distill of the trainable student" in said
    # Packed again it is the same student; an older record in that folder goes.
    again = shutil.copytree(packed, tmp_path / "again")
    (again / "evaluation.json").write_text('{"task": "rte", "accuracy": 0.9}')
    assert main(["pack", str(student), str(again)]) == 0
    assert json.loads((again / "evaluation.json").read_text()) == recorded
    assert evaluate(capsys, student, "--max_eval_samples", 4)[2].endswith("that was measured on other rows")

    data.rename(tmp_path / "moved")
    status, _, said = evaluate(capsys, packed)
    assert status == 1 and said.count("\n") == 0
    assert f"was measured on, {data}, cannot be found: give --dataset (or --data_dir)" in said
    assert "agrees with" in evaluate(capsys, packed, "--data_dir", tmp_path / "moved")[2]
    assert "agrees with" in evaluate(capsys, packed, "--dataset", tmp_path / "moved")[2]


def test_a_model_is_loaded_whole_in_every_process(packed, data, capsys, monkeypatch):
    """With FSDP's loading to save memory all processes but the first would score a model without weights."""
    seen = []
    load = evaluate_command.load_model

    def watch(*args, **kwargs):
        seen.append(os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"])
        return load(*args, **kwargs)

    monkeypatch.setattr(evaluate_command, "load_model", watch)
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    status, *_ = evaluate(capsys, packed, "--task", "sst2", "--data_dir", data)
    assert (status, seen) == (0, ["false"])


def test_another_task_leaves_the_record(packed, data, tmp_path, capsys):
    how = Measurement(task=TASKS["sst2"], data_dir=str(data))
    Record({"task": "sst2", "accuracy": 0.5, "accuracy_stderr": 0.1}, how, "rows", "bitdistill run").write(packed)
    before = (packed / "evaluation.json").read_bytes()
    rows = [{"sentence1": f"it rains {i} .", "sentence2": "it is wet .", "label": i % 2} for i in range(8)]
    write_rows(tmp_path / "rte" / "validation.jsonl", rows)
    other = ["--task", "rte", "--data_dir", tmp_path / "rte"]
    status, result, said = evaluate(capsys, packed, *other)
    assert status == 0 and result["task"] == "rte" and "agree" not in said
    status, _, said = evaluate(capsys, packed, *other, "--output_file", packed / "evaluation.json")
    assert status == 1 and "is the record of its own task, sst2: give another name" in said
    assert "evaluation-rte.json" in said
    # Neither does the score of one model become that of another.
    shutil.copytree(packed, tmp_path / "copy")
    status, _, said = evaluate(capsys, packed, "--output_file", tmp_path / "copy" / "evaluation.json")
    assert status == 1 and "of the model there" in said
    assert (packed / "evaluation.json").read_bytes() == before
    assert evaluate(capsys, packed, *other, "--output_file", packed / "evaluation-rte.json")[0] == 0
    assert evaluate(capsys, packed, "--output_file", packed / "evaluation.json")[0] == 0
    record = read_record(packed)
    assert record.how == how and record.by == "bitdistill evaluate" and record.scores["n"] == 20


def test_without_a_record(packed, data, tmp_path, capsys):
    status, _, said = evaluate(capsys, packed)
    assert status == 1 and "does not know what it is measured on: give --task" in said and said.count("\n") == 0
    (packed / "evaluation.json").write_text('{"task": "sst2", "accuracy": 0.9}')
    status, _, said = evaluate(capsys, packed)
    assert status == 1 and "measured on sst2 by an earlier version" in said
    (packed / "run_options.json").write_text('{"corpus": "texts"}')
    assert "(texts is what it was trained on" in evaluate(capsys, packed)[2]
    # Data whose columns say what they are; a file is measured on as a whole.
    write_rows(tmp_path / "d" / "own.jsonl", [{"text": f"row {i}", "label": "ab"[i % 2]} for i in range(30)])
    status, result, _ = evaluate(capsys, packed, "--dataset", tmp_path / "d" / "own.jsonl")
    assert (status, result["task"], result["n"]) == (0, "own", 30)
    write_rows(tmp_path / "d" / "pairs.jsonl", [{"prompt": f"{i} is", "completion": f" {i}"} for i in range(30)])
    status, result, said = evaluate(capsys, packed, "--dataset", tmp_path / "d" / "pairs.jsonl")
    assert (status, result["task"], result["n"]) == (0, "prompt_completion", 30)
    assert result["perplexity"] > 1 and "token_accuracy" in said and "the most frequent token" in said
    for extra in (["--task", "sst2"], ["--dataset", data]):
        assert "not both" in evaluate(capsys, packed, "--corpus", data, *extra)[2]
    assert "not both" in evaluate(capsys, packed, "--dataset", data, "--data_dir", data)[2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ('{"measured": 3}', "measured must be an object"),
        ('{"measured": {"kind": "other"}}', "kind is 'other', not task or messages"),
        ('{"measured": {"kind": "task"}}', "a task belongs to the kind 'task'"),
        ('{"measured": {"kind": "text", "limit": true}}', "limit must be a int"),
        ('{"measured": {"task": {"prompt": "{x}"}}}', "target is missing"),
    ],
)
def test_a_damaged_record_is_named(packed, capsys, content, message):
    (packed / "evaluation.json").write_text(content)
    status, _, said = evaluate(capsys, packed)
    assert status == 1 and message in said and "evaluation.json" in said and said.count("\n") == 0


def test_agreement():
    how = Measurement(task=TASKS["rte"])
    before = Record(
        {"task": "rte", "accuracy": 0.8, "accuracy_stderr": 0.02, "n": 400}, how, "r", "bitdistill run", "it"
    )

    def said(accuracy, rows="r", how=how):
        return agreement(before, Record({"accuracy": accuracy}, how, rows, "", "float32"))

    assert (
        said(0.8)
        == said(0.809)
        == "agrees with the accuracy 80.0 % +- 2.0, recorded by bitdistill run of it on the same rows"
    )
    assert said(0.811).startswith("DOES NOT AGREE with the accuracy 80.0 % +- 2.0") and "float32" in said(0.7)
    assert "measured on other rows" in said(0.8, rows="other")
    assert "with another prompt or head" in said(0.8, how=Measurement(task=TASKS["rte"], use_chat_template=True))
    assert Measurement.from_dict(json.loads(json.dumps(how.to_dict())), "f") == how


def test_no_credentials_in_a_record():
    how = Measurement("text", dataset="https://user:secret@example.org/data?token=abc")
    assert "secret" not in json.dumps(how.to_dict()) and "abc" not in json.dumps(how.to_dict())


def test_options_that_are_not_read_are_refused(packed, data, tmp_path, capsys):
    for options, message in (
        (["--task", "sst2", "--data_dir", data, "--block_size", 128], "--block_size: not read without --corpus"),
        (["--corpus", "text.txt", "--max_eval_samples", 3], "--max_eval_samples: not read with --corpus"),
        (["--task", "sst2", "--data_dir", data, "--train_split", "x"], "--train_split: not read"),
    ):
        status, result, said = evaluate(capsys, packed, *options)
        assert (status, result) == (1, None) and message in said


def test_another_file_is_measured_as_a_whole(packed, data, tmp_path, capsys):
    from hf_bitdistill.data.fingerprint import fingerprint_rows
    from hf_bitdistill.data.tokenizers import load_tokenizer
    from hf_bitdistill.evaluation.rows import load_rows

    how = Measurement(task=TASKS["sst2"], dataset=str(data), limit=6)
    rows, _ = load_rows(how, load_tokenizer(str(packed)))
    scores = {"task": "sst2", "accuracy": 0.5, "accuracy_stderr": 0.1}
    Record(scores, how, fingerprint_rows(rows), "bitdistill run").write(packed)
    # The same rows in another place are the same part of them; other rows are not limited, unless that is asked for.
    moved = shutil.copytree(data, tmp_path / "moved")
    assert evaluate(capsys, packed, "--dataset", moved)[1]["n"] == 6
    write_rows(tmp_path / "new.jsonl", [{"sentence": f"another film {i} .", "label": i % 2} for i in range(16)])
    result = evaluate(capsys, packed, "--dataset", tmp_path / "new.jsonl")[1]
    assert result["n"] == 16 and "limit" not in result["measured"]
    assert evaluate(capsys, packed, "--dataset", tmp_path / "new.jsonl", "--max_eval_samples", 5)[1]["n"] == 5


def test_revision_and_configuration_win_over_the_record(packed):
    how = Measurement(task=TASKS["sst2"], dataset="owner/data", dataset_revision="old")
    record = Record({}, how, "rows", "bitdistill run")
    parser = evaluate_command.make_parser("evaluate")
    arguments = [str(packed), "--dataset_revision", "new"]
    _, task, _, output = evaluate_command.read(parser, arguments)
    given = evaluate_command.given_options(parser, arguments)
    found = evaluate_command._measurement(str(packed), record, task, output, given)
    assert (found.dataset, found.dataset_revision) == ("owner/data", "new")
