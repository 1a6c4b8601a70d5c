"""From the command line to the packed student, for data of every kind."""

import csv
import json
import random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_bitdistill.cli.main import main
from hf_bitdistill.modeling.sizes import bytes_by_kind
from hf_bitdistill.nn import TernaryLinear
from tiny_recipe import CLASSES, FAST, NOT_FINE_TUNED, flags


def run(capsys, **options):
    """Status, output, and what stands on stderr."""
    status = main(["run", *flags(**options)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def load_packed(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert any(isinstance(module, TernaryLinear) for module in model.modules())
    AutoTokenizer.from_pretrained(folder)
    return model.eval()


def agrees(capsys, folder):
    """Whether `bitdistill evaluate` measures what the run did, without an option; and its result."""
    capsys.readouterr()
    assert main(["evaluate", str(folder)]) == 0
    captured = capsys.readouterr()
    assert (
        "agrees with the" in captured.err and "recorded by bitdistill run of ternary student, packed" in captured.err
    )
    return json.loads(captured.out)


def test_csv_of_ones_own(settings, capsys, tmp_path):
    output = tmp_path / "out"
    own = {"text_columns": ["opinion"], "label_column": "verdict", "output_dir": output, **FAST}
    own["teacher_examples"] = 1600
    status, out, err = run(capsys, model=settings.model, dataset=settings.dataset, compare=True, **own)
    assert (status, err) == (0, "")
    assert "20 training rows were taken away" in out and "classes negative, neutral, positive" in out
    result = json.loads((output / "result.json").read_text())
    table = {row["name"]: row for row in result["table"]}
    assert list(table)[:3] == ["base model", "teacher", "student before distillation"]
    assert table["teacher"]["score"]["value"] > 0.8 > table["base model"]["score"]["value"]
    assert table["ternary student, packed"]["score"]["value"] >= 0.5
    assert "BitNet-SFT (no recipe)" in table
    assert all(row["score"]["stderr"] >= 0 and row["score"]["n"] == 20 for row in table.values())
    assert table["ternary student, packed"]["bytes"] < table["teacher"]["bytes"]
    assert result["rows"] == {"read": 180, "trained on": 162}
    # What is packed is what was measured, and says how it is asked.
    packed = load_packed(output / "packed")
    card = (output / "packed" / "README.md").read_text()
    assert "Opinion: {opinion}" in card and "negative, neutral, positive" in card and "± " in card
    tokenizer = AutoTokenizer.from_pretrained(output / "packed")
    ids = tokenizer("Opinion: dull 3\nVerdict (negative, neutral or positive):", return_tensors="pt")
    assert packed(**ids).logits.isfinite().all()
    again = agrees(capsys, output / "packed")
    assert again["accuracy"] == table["ternary student, packed"]["score"]["value"] and again["n"] == 20
    assert again["measured"]["task"]["labels"] == {name: name for name in CLASSES}
    agrees(capsys, json.loads((output / "result.json").read_text())["paths"]["student"])
    page = (output / "report.html").read_text()
    assert (
        "ternary student, packed" in page
        and page.count("data:image/png") >= 3
        and "http" not in page.split("</style>")[1]
    )
    # Done: the same command finds everything and trains nothing, tells when that was, and leaves what lies in the student's folder.
    for file in output.glob("stages/evaluate-*/result.json"):
        stage = json.loads(file.read_text())
        file.write_text(json.dumps({**stage, "machine": {**stage["machine"], "date": "2020-02-02"}}))
    (output / "packed" / "mine.gguf").write_bytes(b"GGUF")
    before = sorted(path.stat().st_mtime_ns for path in output.glob("stages/*/result.json"))
    status, out, _ = run(capsys, model=settings.model, dataset=settings.dataset, compare=True, **own)
    assert status == 0 and "was done before" in out and "took" not in out
    assert sorted(path.stat().st_mtime_ns for path in output.glob("stages/*/result.json")) == before
    card = (output / "packed" / "README.md").read_text()
    assert (
        "Machine: date 2020-02-02" in card
        and "| temperature | 5 |" in card
        and (output / "packed" / "mine.gguf").is_file()
    )
    assert json.loads((output / "result.json").read_text())["places"]["dataset"] == str(settings.dataset)


@pytest.mark.usefixtures("no_figures", "quick_probe")
@pytest.mark.parametrize("kind", ["chat", "completions"])
def test_written_answers(kind, request, model, tmp_path, capsys):
    dataset = request.getfixturevalue(kind)
    options = {**FAST, "teacher_examples": 480}
    status, out, err = run(capsys, model=model, dataset=dataset, output_dir=tmp_path / "out", **options)
    assert (status, err) == (0, "")
    assert ("conversations" if kind == "chat" else "prompts with completions") in out
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    table = {row["name"]: row["score"] for row in result["table"]}
    assert table["teacher"]["metric"] == "token_accuracy"
    assert table["teacher"]["value"] > table["base model"]["value"]
    assert table["teacher"]["more"]["perplexity"] < table["base model"]["more"]["perplexity"]
    load_packed(tmp_path / "out" / "packed")
    agrees(capsys, tmp_path / "out" / "packed")


@pytest.mark.usefixtures("no_figures", "quick_probe")
def test_plain_text(model, tmp_path, capsys):
    file = tmp_path / "text.jsonl"
    rows = [{"text": f"the robot number {number} waters a green plant near the window . " * 4} for number in range(60)]
    file.write_text("\n".join(map(json.dumps, rows)))
    options = {name: value for name, value in FAST.items() if name not in NOT_FINE_TUNED}
    options |= {"max_length": 32, "check_teacher": False}
    status, out, err = run(capsys, model=model, dataset=file, output_dir=tmp_path / "out", **options)
    assert (status, err) == (0, "") and "plain text, blocks of 32 tokens" in out
    refused = run(capsys, model=model, dataset=file, output_dir=tmp_path / "out2", **options, lora=True)
    assert refused[0] == 1 and "lora: of plain text the model as it came is the teacher" in refused[2]
    names = [row["name"] for row in json.loads((tmp_path / "out" / "result.json").read_text())["table"]]
    assert names[0] == "teacher" and "base model" not in names
    assert agrees(capsys, tmp_path / "out" / "packed")["perplexity"] > 1


@pytest.mark.usefixtures("no_figures", "quick_probe")
def test_corpus_and_paper(settings, tmp_path):
    from hf_bitdistill.recipe import run_recipe

    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("\n".join([json.dumps({"text": "the robot waters a green plant . " * 20})] * 60))
    more = {"corpus": str(corpus), "corpus_tokens": 1024, "block_size": 32, "check_teacher": False}
    more["teacher_examples"] = 64
    result = run_recipe(settings, preset="paper", window_steps=None, keep_massive_ratio=None, **more)
    kinds = [path.name.rsplit("-", 1)[0] for path in (tmp_path / "out" / "stages").iterdir()]
    assert kinds.count("pretrain") == 1 and kinds.count("start") == 1
    start = next((tmp_path / "out" / "stages").glob("start-*/result.json"))
    assert "warm_start" not in json.loads(start.read_text())
    config = json.loads((result.paths["packed"] / "config.json").read_text())["quantization_config"]
    assert config["weight_granularity"] == "tensor"
    assert result.numbers["attention_loss_weight"] == 1e5


def test_a_number_is_no_class(model, tmp_path, capsys):
    file = tmp_path / "prices.csv"
    with file.open("w", newline="") as writer:
        table = csv.writer(writer)
        table.writerow(["text", "label"])
        table.writerows([f"a plant of {number} leaves", number / 3] for number in range(40))
    status, _, err = run(capsys, model=model, dataset=file, output_dir=tmp_path / "out", **FAST)
    assert status == 1 and "regression is not supported" in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_numbers_as_answers_are_told(model, tmp_path, capsys):
    file = tmp_path / "numbers.jsonl"
    rows = [{"text": word, "label": number} for number, word in enumerate(CLASSES.values()) for _ in range(40)]
    file.write_text("\n".join(map(json.dumps, rows)))
    options = {"model": model, "dataset": file, "output_dir": tmp_path / "out", "plan": True, **FAST}
    note = "the answers are the numbers 0, 1, 2, which tell a model nothing of the classes: --label_words"
    assert note in run(capsys, **options)[1]
    assert note not in run(capsys, **options, label_words=list(CLASSES))[1]
    assert main(["data", str(file), "--model", str(model)]) == 0
    assert note in " ".join(capsys.readouterr().out.split())


def test_rows_that_cannot_be_used(model, tmp_path, capsys):
    file = tmp_path / "holes.jsonl"
    rows = [{"text": word, "label": name} for name, word in CLASSES.items() for _ in range(40)]
    for row in rows[:10]:
        row["label"] = None
    for row in rows[10:14]:
        row["text"] = "  "
    random.Random(0).shuffle(rows)
    file.write_text("\n".join(map(json.dumps, rows)))
    options = {"model": model, "dataset": file, "output_dir": tmp_path / "out", **FAST}
    status, _, err = run(capsys, **options)
    assert status == 1 and "without label" in err and "empty text" in err and "max_left_out 10%" in err
    assert not (tmp_path / "out").exists()
    assert main(["run", *flags(**options, max_left_out=0.2, plan=True)]) == 0


def test_a_teacher_with_nothing_to_teach(settings, tmp_path, capsys):
    draw = random.Random(0)
    with open(settings.dataset, "w", newline="") as writer:
        table = csv.writer(writer)
        table.writerow(["opinion", "verdict"])
        table.writerows([f"robot {draw.randrange(99)}", draw.choice(["bad", "good"])] for _ in range(120))
    own = {"text_columns": ["opinion"], "label_column": "verdict", "output_dir": tmp_path / "out"}
    options = {**FAST, "teacher_learning_rates": [1e-5], "teacher_examples": 32}
    status, _, err = run(capsys, model=settings.model, dataset=settings.dataset, **own, **options)
    assert status == 1 and "nothing to distil" in err and "± " in err and "held-out training rows" in err
    assert not list((tmp_path / "out" / "stages").glob("start-*"))


@pytest.mark.usefixtures("no_figures", "quick_probe")
def test_given_teachers(settings, tmp_path, capsys):
    from peft import LoraConfig, get_peft_model

    from hf_bitdistill.recipe import RecipeError, run_recipe

    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(settings.model)
    adapted = get_peft_model(
        base, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights=False)
    )
    adapted.save_pretrained(tmp_path / "adapter")
    expected = adapted.merge_and_unload()
    result = run_recipe(settings, teacher=str(tmp_path / "adapter"), check_teacher=False, **NOT_FINE_TUNED)
    merged = AutoModelForCausalLM.from_pretrained(result.paths["teacher"])
    ids = torch.arange(5, 20)[None]
    assert torch.allclose(merged(ids).logits, expected.eval()(ids).logits, atol=1e-4)

    tokenizer = AutoTokenizer.from_pretrained(settings.model)
    tokenizer.add_tokens(["robots"])
    base.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="different tokenizers"):
        run_recipe(settings, teacher=str(tmp_path / "other"), output_dir=str(tmp_path / "out2"), **NOT_FINE_TUNED)
    with pytest.raises(ValueError, match="the model that is read"):
        run_recipe(settings, output_dir=settings.model)
    with pytest.raises(RecipeError, match="quantised already"):
        run_recipe(settings, model=str(result.paths["student"]), output_dir=str(tmp_path / "out3"))


@pytest.mark.usefixtures("no_figures", "quick_probe")
def test_lora(settings):
    from hf_bitdistill.recipe import run_recipe

    result = run_recipe(settings, lora=True, teacher_examples=160, check_teacher=False)
    model = AutoModelForCausalLM.from_pretrained(result.paths["teacher"])
    assert not any("lora" in name for name, _ in model.named_parameters())


def test_ctrl_c_says_how_to_go_on(settings, tmp_path, capsys, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_bitdistill.recipe.run.run_recipe", interrupt)
    status, _, err = run(capsys, model=settings.model, dataset=settings.dataset, output_dir=tmp_path / "my run")
    assert status == 130 and f"bitdistill run --model {settings.model}" in err and f"'{tmp_path}/my run'" in err


def test_how_the_student_is_stored(settings, capsys, tmp_path):
    """The same options as `bitdistill pack`; of a finished run only the packing is done again."""
    out = tmp_path / "out"
    own = {"text_columns": ["opinion"], "label_column": "verdict", "output_dir": out, "speed": "false", **FAST}
    own |= {"model": settings.model, "dataset": settings.dataset, "teacher_examples": 64, "check_teacher": False}
    assert run(capsys, **own)[0] == 0
    sizes = bytes_by_kind(out / "packed")
    assert run(capsys, **own, dtype="float32", table_bits=8, weight_bits=2)[0] == 0
    again = bytes_by_kind(out / "packed")
    assert (sizes.weight_bits, again.weight_bits) == (1.6, 2) and again.kinds["tables"] < sizes.kinds["tables"]
    config = json.loads((out / "packed" / "config.json").read_text())
    assert config["dtype"] == "float32" and config["quantization_config"]["table_bits"] == 8
    kinds = [folder.name.partition("-")[0] for folder in (out / "stages").iterdir()]
    assert kinds.count("pack") == 2 and kinds.count("start") == 1
    status, _, err = run(capsys, **own, weight_bits=3)
    assert status == 1 and "weight_bits must be one of 2, 1.6, not 3" in err
