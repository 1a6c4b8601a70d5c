"""Output folders: no input is written over, and no finished run is passed off as another."""

import dataclasses
import json

import pytest
from transformers import LlamaForCausalLM

from hf_bitdistill import DistillationConfig
from hf_bitdistill.cli.arguments import ModelArguments, TaskArguments
from hf_bitdistill.cli.main import main
from hf_bitdistill.cli.runs import OPTIONS_FILE, check_options, check_output_dir, keep_options


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
        ((ModelArguments("m"), task, dataclasses.replace(training, logits_loss_weight=1.0)), "logits_loss_weight"),
        ((ModelArguments("other"), task, training), "model_name_or_path"),
    ):
        with pytest.raises(ValueError, match=what):
            check_options(output, arguments)
    assert json.loads((output / OPTIONS_FILE).read_text())["task"] == "sst2"
