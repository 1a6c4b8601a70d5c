"""The commands, run in this process on tiny models and data made here."""

import json
import logging
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from hf_bitdistill import DistillationConfig, PretrainingConfig, evaluation
from hf_bitdistill.cli.arguments import ModelArguments, StudentArguments, TaskArguments
from hf_bitdistill.cli.main import main
from hf_bitdistill.cli.models import calibrate, load_model, load_student
from hf_bitdistill.cli.scores import readable
from hf_bitdistill.nn import TernaryLinear
from hf_bitdistill.options.parsing import parse
from hf_bitdistill.training.pretraining import make_trainer


QUIET = ["--report_to", "none", "--disable_tqdm", "true", "--use_cpu", "true"]


@pytest.fixture
def teacher(tmp_path, tiny_llama_config, tiny_tokenizer):
    torch.manual_seed(0)
    folder = tmp_path / "teacher"
    LlamaForCausalLM(tiny_llama_config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [
        {"sentence": f"a {word} film number {i} .", "label": i % 2} for i in range(12) for word in ("dull", "fine")
    ]
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "corpus.txt").write_text("The robot waters the plant near the window.\n" * 200)
    return folder


def run_line(capsys, *argv):
    """The status, and the one line on stderr that explains a failure."""
    status = main([str(argument) for argument in argv])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("bitdistill")]
    return status, lines


def test_pretrain_distill_pack_evaluate(teacher, data, tmp_path, capsys):
    pretrained, student = tmp_path / "pretrained", tmp_path / "student"
    common = ["--per_device_train_batch_size", "4", "--max_steps", "2", "--save_steps", "1", *QUIET]
    options = ["--model_name_or_path", teacher, "--corpus", data / "corpus.txt", "--sample_by", "line"]
    command = ["pretrain", *options, "--block_size", "32", "--output_dir", pretrained, *common]
    assert main([str(argument) for argument in command]) == 0
    assert "calibrated 4 SubLNs" in capsys.readouterr().out
    # Again: it goes on from the last checkpoint, which is the end.
    command[command.index("--max_steps") + 1] = "3"
    assert main([str(argument) for argument in command]) == 0
    assert f"going on from {pretrained}/checkpoint-2: step 2 of 3 is done" in capsys.readouterr().out
    state = json.loads((pretrained / "trainer_state.json").read_text())
    assert state["global_step"] == 3

    config = tmp_path / "distill.yaml"
    config.write_text(
        f"model_name_or_path: {pretrained}\nteacher_model_name_or_path: {teacher}\ntask: sst2\ndata_dir: {data}\n"
        f"output_dir: {student}\npack_to: {tmp_path / 'packed'}\nlearning_rate: 1e-4\nattention_layers: [-1]\n"
        "attention_loss_weight: 1000\nmax_steps: 99\n"
    )
    assert main(["distill", str(config), *common]) == 0
    scores = json.loads((student / "evaluation.json").read_text())
    assert scores["n"] == 24 and scores["chance_level"] == 0.5
    card = (student / "README.md").read_text()
    assert "bitdistill" in card and "More information needed" not in card
    # Again: it is finished, so nothing is trained and the same is measured.
    before = (student / "model.safetensors").read_bytes()
    assert main(["distill", str(config), *common]) == 0
    assert (student / "model.safetensors").read_bytes() == before
    assert json.loads((student / "trainer_state.json").read_text())["global_step"] == 2
    assert json.loads((student / "evaluation.json").read_text())["accuracy"] == scores["accuracy"]
    status, lines = run_line(
        capsys, "distill", config, *common, "--weight_granularity", "tensor", "--model_name_or_path", teacher
    )
    assert status == 1 and "weight_granularity ('row', not 'tensor')" in lines[0]

    assert main(["pack", str(student), str(tmp_path / "packed_again")]) == 0
    told = capsys.readouterr().out
    assert "MB packed" in told and "| ternary codes |" in told and "| the original in bfloat16 |" in told
    assert main(["pack", str(student), str(tmp_path / "packed_int4"), "--table_bits", "4", "--dtype", "float16"]) == 0
    small = AutoModelForCausalLM.from_pretrained(tmp_path / "packed_int4")
    assert small.get_input_embeddings().table.bits == 4 and small.dtype == torch.float16
    assert main(["pack", str(student), str(tmp_path / "packed_int8"), "--head_bits", "8"]) == 0
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "packed_int8").get_input_embeddings().table.bits == 8
    first, second = (tmp_path / name / "model.safetensors" for name in ("packed", "packed_again"))
    assert first.read_bytes() == second.read_bytes()
    packed = AutoModelForCausalLM.from_pretrained(tmp_path / "packed")
    assert any(isinstance(module, TernaryLinear) for module in packed.modules())
    AutoTokenizer.from_pretrained(tmp_path / "packed")

    result = tmp_path / "result.json"
    arguments = ["--task", "sst2", "--data_dir", str(data), "--output_file", str(result)]
    capsys.readouterr()
    assert main(["evaluate", "--model_name_or_path", str(tmp_path / "packed"), *arguments]) == 0
    again = json.loads(result.read_text())
    assert again["accuracy"] == scores["accuracy"]
    captured = capsys.readouterr()
    json.loads(captured.out)
    assert "accuracy" in captured.err and "24 examples; +- is one standard error" in captured.err
    arguments = ["--corpus", str(data / "corpus.txt"), "--block_size", "32", "--max_blocks", "4"]
    assert main(["evaluate", "--model_name_or_path", str(tmp_path / "packed"), *arguments]) == 0
    perplexity = json.loads(capsys.readouterr().out)["perplexity"]
    assert main(["evaluate", "--model_name_or_path", str(tmp_path / "packed"), *arguments, "--head_bits", "8"]) == 0
    assert json.loads(capsys.readouterr().out)["perplexity"] == pytest.approx(perplexity, rel=0.05)


def test_the_cpu_is_used_where_there_is_no_accelerator(tmp_path, monkeypatch):
    def use_cpu(*flags):
        (training,) = parse([DistillationConfig], ["--output_dir", str(tmp_path), *flags], "bitdistill", "")
        return training.use_cpu

    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert use_cpu() and use_cpu("--bf16") and not use_cpu("--use_cpu", "false")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert not use_cpu() and use_cpu("--use_cpu", "true")


def test_attention_and_dtype_of_a_model(teacher):
    arguments = ModelArguments(str(teacher), dtype="bfloat16", attn_implementation="eager")
    model = load_model(arguments)
    assert model.config._attn_implementation == "eager" and model.dtype == torch.bfloat16
    assert load_student(arguments, StudentArguments())[0].config._attn_implementation == "eager"
    assert load_model(ModelArguments(str(teacher))).config._attn_implementation != "eager"


def test_sequence_classification(teacher, data, tmp_path, capsys):
    common = ["--per_device_train_batch_size", "4", "--max_steps", "1", "--save_strategy", "no", *QUIET]
    task = ["--task", "sst2", "--data_dir", str(data), "--head", "sequence_classification"]
    losses = ["--logits_loss_weight", "0", "--attention_loss_weight", "0"]
    student = tmp_path / "student"
    options = ["--model_name_or_path", str(teacher), "--output_dir", str(student), "--sub_norm", "all"]
    assert main(["distill", *options, *task, *losses, *common]) == 0
    assert main(["pack", str(student), str(tmp_path / "packed")]) == 0
    capsys.readouterr()
    assert main(["evaluate", "--model_name_or_path", str(tmp_path / "packed"), *task]) == 0
    accuracy = json.loads((student / "evaluation.json").read_text())["accuracy"]
    assert json.loads(capsys.readouterr().out)["accuracy"] == accuracy


def test_what_is_measured_is_what_was_saved(teacher, data, tmp_path, monkeypatch):
    # In float32, as `bitdistill evaluate` does, not in the precision that the trained object keeps.
    measured = []
    tokens = torch.arange(3, 20)[None]
    scores = evaluation.evaluate_task

    def spy(model, *args, **kwargs):
        with torch.no_grad():
            measured.append(model(tokens).logits)
        return scores(model, *args, **kwargs)

    monkeypatch.setattr(evaluation, "evaluate_task", spy)
    monkeypatch.setenv("HOME", str(teacher.parent))
    student = tmp_path / "student"
    models = ["--model_name_or_path", str(teacher), "--teacher_model_name_or_path", f"~/{teacher.name}"]
    options = ["--task", "sst2", "--data_dir", str(data), "--attention_layers", "-1", "--bf16", "--max_steps", "1"]
    assert main(["distill", *models, *options, "--output_dir", str(student), *QUIET]) == 0
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(student)(tokens).logits
    assert len(measured) == 1 and torch.equal(measured[0], expected)


def test_a_new_student_is_calibrated_as_it_will_be_trained(teacher, tmp_path, monkeypatch):
    training = DistillationConfig(str(tmp_path), bf16=True, use_cpu=True)
    batches = [{"input_ids": torch.arange(3, 20)[None]}]

    def is_autocast():
        student, _ = load_student(ModelArguments(str(teacher)), StudentArguments())
        seen = []
        student.lm_head.register_forward_pre_hook(lambda *_: pytest.fail("logits are not needed"))
        student.model.layers[0].mlp.register_forward_pre_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
        calibrate(student, StudentArguments(), batches, training)
        assert len(seen) == 1 and not (student.model.layers[0].mlp.down_proj.rms_norm.weight == 1).all()
        return seen[0]

    assert is_autocast()
    # A model that will be sharded stays where it is.
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert not is_autocast()


def test_latent_weights_of_16_bits_are_warned_of(teacher, tmp_path, tiny_tokenizer, caplog, monkeypatch):
    training = PretrainingConfig(str(tmp_path), use_cpu=True)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    for dtype, warned in (("float32", False), ("bfloat16", True)):
        caplog.clear()
        student, _ = load_student(ModelArguments(str(teacher), dtype=dtype), StudentArguments())
        make_trainer(student, training, [], tiny_tokenizer)
        assert ("rounds away" in caplog.text) == warned


def test_several_devices_in_one_process_are_refused(teacher, tmp_path, tiny_tokenizer):
    training = PretrainingConfig(str(tmp_path), use_cpu=True)
    training._n_gpu = 2
    student, _ = load_student(ModelArguments(str(teacher)), StudentArguments())
    with pytest.raises(ValueError, match="DataParallel is not supported"):
        make_trainer(student, training, [], tiny_tokenizer)


def test_a_head_that_was_never_trained_is_refused(teacher, data, tmp_path, capsys):
    task = ["--task", "sst2", "--data_dir", data, "--head", "sequence_classification"]
    status, lines = run_line(capsys, "evaluate", "--model_name_or_path", teacher, *task)
    assert status == 1 and "score.weight" in lines[0]
    models = ["--model_name_or_path", teacher, "--teacher_model_name_or_path", teacher]
    status, lines = run_line(capsys, "distill", *models, *task, "--output_dir", tmp_path / "out", *QUIET)
    assert status == 1 and "the teacher" in lines[0] and "score.weight" in lines[0]


def test_failures_are_one_line(teacher, data, tmp_path, capsys):
    model = ["--model_name_or_path", teacher]
    empty = tmp_path / "empty"
    empty.mkdir()
    cases = {
        "there is no model folder": ["evaluate", "--model_name_or_path", "/no/such/folder", "--task", "sst2"],
        "no config.json": ["pack", empty, tmp_path / "out"],
        "unknown task 'sst3'": ["evaluate", *model, "--task", "sst3"],
        "there is no folder": ["evaluate", *model, "--task", "sst2", "--data_dir", "/no/data"],
        "give --task": ["evaluate", *model],
        "not a BitNet student": ["pack", teacher, tmp_path / "out"],
        "there is no configuration file": ["distill", "no.yaml"],
        "did you mean 'learning_rate'": ["distill", "--task", "sst2", "--lerning_rate", "1"],
        "--teacher_model_name_or_path is required": ["distill", *model, "--task", "sst2"],
        "--corpus is required": ["pretrain", *model],
        "a block (--block_size) has 300 tokens and the model's context is 256": [
            *(
                "pretrain",
                *model,
                "--corpus",
                data / "corpus.txt",
                "--block_size",
                300,
                "--output_dir",
                tmp_path / "long",
                *QUIET,
            )
        ],
        "needs --max_steps": ["pretrain", *model, "--corpus", data / "corpus.txt", "--streaming", "true"],
    }
    for message, command in cases.items():
        if "evaluate" in command and "--data_dir" not in command:
            command += ["--data_dir", data]
        status, lines = run_line(capsys, *command)
        assert status == 1, command
        assert len(lines) == 1 and message in lines[0], (message, lines)
        assert lines[0].startswith(f"bitdistill {command[0]}: error: ")
    assert run_line(capsys, "distil")[0] == 2
    assert main([]) == 2 and main(["--help"]) == 0 and main(["--version"]) == 0


def test_names_that_are_no_model(teacher, data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task = ["--task", "sst2", "--data_dir", data]
    for command in (
        ["evaluate", "--model_name_or_path", "teachr", *task],
        ["benchmark", "teachr"],
        ["pack", "teachr", "out"],
    ):
        status, lines = run_line(capsys, *command)
        assert status == 1 and len(lines) == 1, lines
        assert (
            "teachr is neither a folder here nor a model on the Hub" in lines[0]
            and "did you mean teacher?" in lines[0]
        )
    for file in teacher.glob("tokenizer*"):
        file.unlink()
    status, lines = run_line(capsys, "evaluate", "--model_name_or_path", teacher, *task)
    assert status == 1 and f"{teacher} has no tokenizer: put the model's there" in lines[0]


def test_reports_to_what_is_not_installed_are_refused_before_any_work(teacher, tmp_path, capsys, monkeypatch):
    from transformers.integrations import integration_utils

    monkeypatch.setattr(integration_utils, "is_tensorboard_available", lambda: False)
    command = ["pretrain", "--model_name_or_path", teacher, "--corpus", tmp_path / "none.txt"]
    command += ["--output_dir", tmp_path / "out", "--report_to", "tensorboard"]
    status, lines = run_line(capsys, *command)
    assert (
        status == 1
        and len(lines) == 1
        and "--report_to tensorboard needs a package that is not installed here" in lines[0]
    )
    status, lines = run_line(capsys, *command[:-1], "tensorbord")
    assert status == 1 and len(lines) == 1 and "tensorbord" in lines[0]
    assert not (tmp_path / "out").exists()


def test_scores_for_people():
    result = {
        "task": "t",
        "accuracy": 0.875,
        "f1": 0.5,
        "accuracy_stderr": 0.0112,
        "f1_stderr": float("nan"),
        "n": 872,
    }
    text = readable({**result, "chance_level": 0.5092, "random_level": 0.5})
    assert (
        "accuracy                 87.5 %  +- 1.1\n" in text and "f1                       50.0 %  +- unknown" in text
    )
    assert "the most frequent class  50.9 %\n" in text and text.endswith("872 examples; +- is one standard error")
    text = readable({"perplexity": 12.345, "nll_per_token": 2.5, "tokens": 1000})
    assert text == "perplexity     12.35\nnll_per_token    2.5\n1,000 tokens"


def test_damaged_files_of_a_model_are_named(teacher, data, tmp_path, capsys):
    options = ["--task", "sst2", "--data_dir", data]
    quantized = json.dumps({**json.loads((teacher / "config.json").read_text()), "quantization_config": "ternary"})
    damages = {
        "config.json: not valid JSON": ("config.json", b'{"model_type": '),
        "nested too deeply": ("config.json", b"[" * 100_000),
        "'quantization_config' must be an object": ("config.json", quantized.encode()),
        "its tokenizer cannot be read": ("tokenizer.json", b'{"model": {}}'),
    }
    for index, (message, (name, content)) in enumerate(damages.items()):
        folder = shutil.copytree(teacher, tmp_path / str(index))
        (folder / name).write_bytes(content)
        status, lines = run_line(capsys, "evaluate", "--model_name_or_path", folder, *options)
        assert status == 1 and len(lines) == 1 and message in lines[0] and str(folder) in lines[0], lines


def test_a_teacher_with_another_tokenizer(teacher, data, tmp_path, capsys, tiny_tokenizer):
    other = tmp_path / "other"
    AutoModelForCausalLM.from_pretrained(teacher).save_pretrained(other)
    file = other / "tokenizer.json"
    tiny_tokenizer.save_pretrained(other)
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    file.write_text(json.dumps(tokenizer))
    options = ["--task", "sst2", "--data_dir", data, "--output_dir", tmp_path / "out", *QUIET]
    models = ["--model_name_or_path", teacher, "--teacher_model_name_or_path", other]
    status, lines = run_line(capsys, "distill", *models, *options)
    assert status == 1 and len(lines) == 1 and "tokenizer" in lines[0]


def test_packed_models_and_other_methods_are_not_trained(teacher, data, tmp_path, capsys):
    import hf_bitdistill

    student = hf_bitdistill.apply_bitnet(AutoModelForCausalLM.from_pretrained(teacher))
    packed = tmp_path / "packed"
    hf_bitdistill.pack(student).save_pretrained(packed)
    options = ["--corpus", data / "corpus.txt", "--output_dir", tmp_path / "out", *QUIET]
    status, lines = run_line(capsys, "pretrain", "--model_name_or_path", packed, *options)
    assert status == 1 and "packed and cannot be trained" in lines[0]


class TestParsing:
    KINDS = (ModelArguments, StudentArguments, TaskArguments)

    def read(self, tmp_path, text, *flags):
        file = tmp_path / "options.yaml"
        file.write_text(text)
        return parse(self.KINDS, [str(file), *flags], "bitdistill test", "test")

    def test_types_lists_and_precedence(self, tmp_path):
        text = "sub_norm: all\nsub_norm_eps: 1e-5\nmodules_to_not_convert: [lm_head, layers.0]\nmax_length: 64\n"
        _, student, task = self.read(tmp_path, text + "use_chat_template: true\n", "--max_length", "32")
        assert (student.sub_norm, student.sub_norm_eps) == ("all", 1e-5)
        assert student.modules_to_not_convert == ["lm_head", "layers.0"]
        assert task.max_length == 32 and task.use_chat_template is True

    @pytest.mark.parametrize("text", ["sub_norm: everywhere", "max_length: long"])
    def test_values_of_the_file_are_checked(self, tmp_path, text):
        with pytest.raises(SystemExit):
            self.read(tmp_path, text)

    @pytest.mark.parametrize(
        "text, message", [("sub_nrm: all", "did you mean 'sub_norm'"), ("- a", "map options"), ("a: [", "YAML")]
    )
    def test_bad_files(self, tmp_path, text, message):
        with pytest.raises(ValueError, match=message):
            self.read(tmp_path, text)


def test_the_objective_without_a_teacher(teacher, tmp_path, tiny_tokenizer):
    """What the stock Trainer would drop without a word is refused; its batches are checked as with a teacher."""
    student = AutoModelForCausalLM.from_pretrained(teacher)
    options = {"output_dir": str(tmp_path), "report_to": [], "use_cpu": True}
    with pytest.raises(ValueError, match=r"--ce_loss_weight 0\.5 weighs the tokens against a teacher"):
        make_trainer(student, PretrainingConfig(ce_loss_weight=0.5, **options), [], tiny_tokenizer)
    trainer = make_trainer(student, PretrainingConfig(**options), [], tiny_tokenizer)
    with pytest.raises(ValueError, match=r"example 0 of the batch: token 0 is 9999"):
        trainer.data_collator([{"input_ids": [9999], "attention_mask": [1], "labels": [3]}])
    student.config.output_router_logits = True
    with pytest.raises(
        ValueError, match="--label_smoothing_factor makes Trainer drop the loss of a mixture's routers"
    ):
        make_trainer(student, PretrainingConfig(label_smoothing_factor=0.1, **options), [], tiny_tokenizer)
