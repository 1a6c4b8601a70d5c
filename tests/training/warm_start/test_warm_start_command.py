"""`bitdistill warm-start`, and `bitdistill pretrain` with a teacher from what it leaves."""

import json

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, LlamaForSequenceClassification

from hf_bitdistill.cli.main import main
from hf_bitdistill.cli.warm_start import CHECKPOINT
from hf_bitdistill.data import build_dataset, get_task
from hf_bitdistill.nn import BitLinear
from hf_bitdistill.training.warm_start.window import Window


@pytest.fixture
def model(tmp_path, tiny_llama_config, tiny_tokenizer):
    torch.manual_seed(0)
    LlamaForCausalLM(tiny_llama_config).save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "corpus.txt").write_text("The robot waters the plant near the window.\n" * 200)
    return tmp_path / "model"


def run(command, *arguments):
    return main([command, *map(str, arguments)])


def test_warm_start_then_pretraining_with_the_teacher(model, tmp_path, capsys):
    text = ["--corpus", tmp_path / "corpus.txt", "--sample_by", "line", "--block_size", 32]
    started = tmp_path / "started"
    options = ["--output_dir", started, "--steps_per_window", 5, "--warm_start_tokens", 1000, "--rank", 4]
    kept = [*options, "--sub_norm", "none", "--keep_massive_ratio", 1.000001]  # every largest output is above
    assert run("warm-start", "--model_name_or_path", model, *text, *kept) == 0
    assert "kept in full precision: model.layers.0.self_attn.o_proj" in capsys.readouterr().out
    student = AutoModelForCausalLM.from_pretrained(started)
    assert sum(isinstance(module, BitLinear) for module in student.modules()) == 10
    assert run("warm-start", "--model_name_or_path", model, *text, *options) == 0
    report = json.loads((started / "warm_start.json").read_text())
    assert report["calibration_tokens"] == 1024 and report["config"]["rank"] == 4
    assert "layers 0 to 1: error" in capsys.readouterr().out
    other = [*options, "--output_dir", tmp_path / "other"]
    assert run("warm-start", "--model_name_or_path", started, *text, *other) == 1
    assert "is a student already: start from its full-precision model" in capsys.readouterr().err
    student = AutoModelForCausalLM.from_pretrained(started)
    assert sum(isinstance(module, BitLinear) for module in student.modules()) == 14

    training = ["--max_steps", 2, "--per_device_train_batch_size", 4, "--logging_steps", 1, "--report_to", "none"]
    training += ["--use_cpu", "true", "--disable_tqdm", "true"]
    for name, more, terms in (
        ("taught", ["--teacher_model_name_or_path", model], {"loss_ce", "loss_logits"}),
        ("alone", ["--quantization_warmup_steps", 2], set()),
    ):
        command = ["--model_name_or_path", started, *text, "--output_dir", tmp_path / name, *training, *more]
        assert run("pretrain", *command) == 0
        log = json.loads((tmp_path / name / "trainer_state.json").read_text())["log_history"]
        assert terms == {key for key in log[0] if key.startswith("loss_")}
        assert "calibrated" not in capsys.readouterr().out  # it keeps the start it was given


def test_the_same_command_goes_on_behind_the_last_window(model, tmp_path, capsys, monkeypatch):
    command = [
        "warm-start",
        "--model_name_or_path",
        model,
        "--corpus",
        tmp_path / "corpus.txt",
        "--sample_by",
        "line",
        "--block_size",
        32,
    ]
    command += [
        "--steps_per_window",
        3,
        "--warm_start_tokens",
        500,
        "--rank",
        4,
        "--window_layers",
        1,
        "--window_stride",
        1,
    ]
    assert run(*command, "--output_dir", tmp_path / "whole") == 0
    assert "finished layers again" not in capsys.readouterr().out
    fit, fitted = Window.fit, []

    def fail_once(window, *arguments):
        fitted.append(window.first)
        if len(fitted) == 2:
            raise OSError("killed")
        return fit(window, *arguments)

    monkeypatch.setattr(Window, "fit", fail_once)
    output = tmp_path / "killed"
    assert run(*command, "--output_dir", output) == 1
    assert (output / CHECKPOINT).is_file() and not (output / "model.safetensors").exists()
    capsys.readouterr()
    # With other options it is another one, which would be lost.
    assert run(*command, "--rank", 5, "--output_dir", output) == 1
    assert f"{CHECKPOINT} belongs to a warm start of another model, with other options" in capsys.readouterr().err
    assert run(*command, "--output_dir", output) == 0
    assert "batches through 1 finished layers again" in capsys.readouterr().out
    assert fitted == [0, 1, 1] and not (output / CHECKPOINT).exists()
    whole, killed = (load_file(folder / "model.safetensors") for folder in (tmp_path / "whole", output))
    assert whole.keys() == killed.keys() and all(torch.equal(whole[name], value) for name, value in killed.items())
    errors = [
        [window["error_after"] for window in json.loads((folder / "warm_start.json").read_text())["windows"]]
        for folder in (tmp_path / "whole", output)
    ]
    assert errors[0] == errors[1]


@pytest.mark.parametrize("head", ["causal_lm", "sequence_classification"])
def test_warm_start_of_a_fine_tuned_model_on_its_task(model, tmp_path, tiny_llama_config, head, capsys):
    teacher = model
    if head == "sequence_classification":
        teacher = tmp_path / "classifier"
        AutoTokenizer.from_pretrained(model).save_pretrained(teacher)
        tiny_llama_config.pad_token_id = 1
        LlamaForSequenceClassification(tiny_llama_config).save_pretrained(teacher)
    rows = [
        {"sentence": f"a {word} film {'indeed ' * (i % 4)}.", "label": i % 2}
        for i in range(20)
        for word in ("dull", "fine")
    ]
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = ["--task", "sst2", "--data_dir", tmp_path, "--head", head]
    started = tmp_path / "started"
    options = ["--output_dir", started, "--steps_per_window", 3, "--batch_size", 8, "--rank", 4]
    assert run("warm-start", "--model_name_or_path", teacher, *task, *options) == 0
    report = json.loads((started / "warm_start.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(model)
    encoded = build_dataset(get_task("sst2"), Dataset.from_list(rows), tokenizer, head=head)
    assert report["calibration_tokens"] == sum(map(len, encoded["input_ids"]))  # no padding among them
    training = ["--max_steps", 2, "--per_device_train_batch_size", 4, "--logging_steps", 1, "--report_to", "none"]
    training += ["--use_cpu", "true", "--disable_tqdm", "true", "--teacher_model_name_or_path", teacher]
    command = ["--model_name_or_path", started, *task, "--output_dir", tmp_path / "student", *training]
    capsys.readouterr()
    assert run("distill", *command) == 0
    assert "calibrated" not in capsys.readouterr().out
    assert json.loads((tmp_path / "student" / "evaluation.json").read_text())["n"] == 40


def test_refusals(model, tmp_path, capsys):
    text = ["--corpus", tmp_path / "corpus.txt", "--block_size", 32]
    assert run("warm-start", "--model_name_or_path", model, *text) == 1
    assert "--output_dir is required" in capsys.readouterr().err
    for given, told in (
        ([], "--corpus or --task is required"),
        ([*text, "--task", "sst2"], "give either --corpus or --task"),
    ):
        assert run("warm-start", "--model_name_or_path", model, "--output_dir", tmp_path / "out", *given) == 1
        assert told in capsys.readouterr().err
    for name in ("--attention_loss_weight", "--hidden_loss_weight"):
        wrong = ["--output_dir", tmp_path / "out", name, 1]
        assert run("pretrain", "--model_name_or_path", model, *text, *wrong) == 1
        assert f"{name} needs --teacher_model_name_or_path" in capsys.readouterr().err
