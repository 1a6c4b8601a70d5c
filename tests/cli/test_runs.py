"""Output folders: no input is written over, and no finished run is passed off as another."""

import dataclasses
import json

import pytest
from transformers import LlamaForCausalLM

from hf_bitdistill import DistillationConfig
from hf_bitdistill.cli.arguments import ModelArguments, TaskArguments
from hf_bitdistill.cli.main import main
from hf_bitdistill.cli.runs import OPTIONS_FILE, check_options, keep_options
from hf_bitdistill.files.output_folder import check_output_dir


@pytest.fixture
def full_precision(tmp_path, tiny_llama_config):
    folder = tmp_path / "model"
    LlamaForCausalLM(tiny_llama_config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("option", ["model_name_or_path", "teacher_model_name_or_path", None])
def test_no_command_writes_over_a_model(full_precision, tmp_path, capsys, monkeypatch, option):
    monkeypatch.chdir(tmp_path)
    weights = (full_precision / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match=option.replace("_", " ") if option else "holds a model in full precision"):
        check_output_dir("model", {option: full_precision} if option else {"model_name_or_path": None})
    named = ["--model_name_or_path", str(full_precision)]
    quiet = ["--use_cpu", "true"]
    for command in (
        ["warm-start", *named, "--corpus", "x", "--output_dir", "model"],
        ["pretrain", *named, "--corpus", "x", "--output_dir", "model", *quiet],
        ["distill", *named, "--task", "sst2", "--data_dir", "x", "--output_dir", "model", *quiet]
        + ["--teacher_model_name_or_path", str(full_precision)],
        ["pack", str(full_precision), "model"],
    ):
        assert main(command) == 1
        assert "give another folder" in capsys.readouterr().err
    assert (full_precision / "model.safetensors").read_bytes() == weights


def test_a_folder_is_continued_with_its_own_options_only(tmp_path):
    output = tmp_path / "student"
    training = DistillationConfig(str(output), learning_rate=5e-5, use_cpu=True)
    task = TaskArguments(task="sst2")
    keep_options(output, (ModelArguments("m"), task, training))
    # Nothing is trained yet: anything goes.
    check_options(output, (ModelArguments("m"), TaskArguments(task="rte"), training))
    (output / "config.json").write_text("{}")
    longer = dataclasses.replace(training, max_steps=99, logging_steps=3)
    check_options(output, (ModelArguments("m", attn_implementation="eager"), task, longer))
    for arguments, what in (
        ((ModelArguments("m"), TaskArguments(task="rte"), training), r"another task \('sst2', not 'rte'\)"),
        ((ModelArguments("m"), task, dataclasses.replace(training, learning_rate=0.01)), "another learning_rate"),
        ((ModelArguments("m"), task, dataclasses.replace(training, logits_loss_weight=10.0)), "logits_loss_weight"),
        ((ModelArguments("other"), task, training), "model_name_or_path"),
    ):
        with pytest.raises(ValueError, match=what):
            check_options(output, arguments)
    assert json.loads((output / OPTIONS_FILE).read_text())["task"] == "sst2"


QUIET = ["--report_to", "none", "--disable_tqdm", "true", "--use_cpu", "true"]


def fails(capsys, *command):
    """The one line that explains why a command failed."""
    capsys.readouterr()
    assert main([str(word) for word in command]) == 1, command
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("bitdistill")]
    return line


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [{"sentence": f"a film number {i} .", "label": i % 2} for i in range(8)]
    pairs = [{"sentence1": "it rains .", "sentence2": f"it is wet {i} .", "label": i % 2} for i in range(8)]
    for name, each in (("sst2", rows), ("rte", pairs)):
        for split in ("train", "validation"):
            (folder / name).mkdir(exist_ok=True)
            (folder / name / f"{split}.jsonl").write_text("\n".join(map(json.dumps, each)))
    (folder / "corpus.txt").write_text("the robot waters the plant near the window .\n" * 60)
    return folder


def test_what_is_said_of_a_student_is_of_that_student(full_precision, data, tmp_path, tiny_tokenizer, capsys):
    """A card and a record are written by the run that measured, and by no command that comes after it into the same folder."""
    tiny_tokenizer.save_pretrained(full_precision)
    student, named = tmp_path / "student", ["--model_name_or_path", full_precision]
    teacher = ["--teacher_model_name_or_path", full_precision, "--attention_layers", "-1"]
    task = ["--task", "sst2", "--data_dir", data / "sst2"]
    steps = ["--max_steps", 1, "--save_steps", 1, *QUIET]
    distill = ["distill", *named, *teacher, "--output_dir", student, *steps]
    assert main([str(word) for word in [*distill, *task]]) == 0

    def state():
        return {file.name: file.read_bytes() for file in student.iterdir() if file.is_file()}

    before = state()
    text = ["--corpus", data / "corpus.txt", "--sample_by", "line", "--block_size", 32]
    assert "another kind_of_training" in fails(capsys, "pretrain", *named, *text, "--output_dir", student, *steps)
    for command in (
        ["warm-start", *named, *text, "--output_dir", student],
        ["pack", full_precision, student],
        [*distill[: -len(steps) - 1], tmp_path / "new", *task, *steps, "--pack_to", student],
    ):
        assert f"the output folder {student} is that of a training (run_options.json)" in fails(capsys, *command)
    # From its checkpoint into another folder: with its options only.
    resumed = ["--resume_from_checkpoint", student / "checkpoint-1"]
    elsewhere = ["distill", *named, *teacher, *task, *steps, *resumed, "--output_dir", tmp_path / "elsewhere"]
    assert "another learning_rate" in fails(capsys, *elsewhere, "--learning_rate", 0.01)

    # A folder of an earlier version kept no options.
    (student / OPTIONS_FILE).rename(tmp_path / OPTIONS_FILE)
    del before[OPTIONS_FILE]
    other = ["--task", "rte", "--data_dir", data / "rte"]
    for command in ([*distill, *task, "--learning_rate", 0.01], [*distill, *other]):
        line = fails(capsys, *command)
        assert f"{student} holds checkpoints, and with which options" in line and "checkpoint-1" in line
    assert "that of a training (trainer_state.json)" in fails(capsys, "pack", full_precision, student)
    assert "there is nothing to train" in fails(capsys, *elsewhere)
    (student / OPTIONS_FILE).write_text("[")
    assert f"({OPTIONS_FILE} is damaged)" in fails(capsys, *distill, *task)
    (student / OPTIONS_FILE).unlink()
    assert state() == before
    assert not (tmp_path / "elsewhere" / "README.md").exists()


def test_a_student_that_takes_anothers_place_takes_no_record(full_precision, data, tmp_path, tiny_tokenizer, capsys):
    tiny_tokenizer.save_pretrained(full_precision)
    folder = tmp_path / "student"
    text = ["--corpus", data / "corpus.txt", "--sample_by", "line", "--block_size", 32, "--warm_start_tokens", 512]
    command = ["warm-start", "--model_name_or_path", full_precision, *text, "--steps_per_window", 1]
    for output in (folder, tmp_path / "packed"):
        assert main([str(word) for word in [*command, "--output_dir", output]]) == 0
        (output / "evaluation.json").write_text('{"task": "sst2", "accuracy": 0.9}')
        (output / "README.md").write_text("---\ntags: [bitdistill]\n---\n90 %\n")
    # (Their own training's folder is refused; a student that no training left is another model's.)
    quiet = ["--task", "sst2", "--data_dir", data / "sst2", "--output_dir", folder, *QUIET]
    teacher = ["--teacher_model_name_or_path", full_precision]
    line = fails(capsys, "distill", "--model_name_or_path", full_precision, *teacher, *quiet)
    assert f"{folder} holds a model, and with which options" in line
    assert main(["pack", str(folder), str(tmp_path / "packed")]) == 0
    names = {file.name for file in (tmp_path / "packed").iterdir()}
    assert "warm_start.json" not in names and "90 %" in (tmp_path / "packed" / "README.previous.md").read_text()
    assert "90 %" not in (tmp_path / "packed" / "README.md").read_text()
    # The record of the student that was packed came with it; the one that was there went.
    assert (tmp_path / "packed" / "evaluation.json").read_text() == (folder / "evaluation.json").read_text()
    assert main([str(word) for word in [*command, "--output_dir", folder]]) == 0
    names = {file.name for file in folder.iterdir()}
    assert "evaluation.json" not in names and "README.md" not in names and "warm_start.json" in names
    # A card of someone's own stays.
    (folder / "README.md").write_text("---\ntags: [mine]\n---\n")
    assert main([str(word) for word in [*command, "--output_dir", folder]]) == 0
    assert (folder / "README.md").is_file()


def test_a_finished_run_keeps_its_best_model(full_precision, data, tmp_path, tiny_tokenizer, capsys):
    tiny_tokenizer.save_pretrained(full_precision)
    student = tmp_path / "best"
    named = ["--model_name_or_path", full_precision, "--teacher_model_name_or_path", full_precision]
    task = ["--task", "sst2", "--data_dir", data, "--attention_layers", -1]
    # The loss falls, and the largest one is the best.
    best = "--load_best_model_at_end true --metric_for_best_model loss --greater_is_better true --eval_strategy steps --eval_steps 1"
    steps = "--save_steps 1 --max_steps 3 --learning_rate 1e-2 --report_to none --use_cpu true --disable_tqdm true"
    command = list(map(str, ["distill", *named, *task, *best.split(), *steps.split(), "--output_dir", student]))
    assert main(command) == 0
    kept = (student / "model.safetensors").read_bytes()
    assert kept != (student / "checkpoint-3" / "model.safetensors").read_bytes()
    capsys.readouterr()
    assert main(command) == 0
    assert "nothing left to do" in capsys.readouterr().out
    assert (student / "model.safetensors").read_bytes() == kept
