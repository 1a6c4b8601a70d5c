"""The accuracy benchmark runs all of its stages, on a model and data made here, and runs none of them twice."""

import dataclasses
import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM


FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "accuracy"
MODULES = [path.stem for path in FOLDER.glob("*.py")]


@pytest.fixture
def benchmark(monkeypatch):
    """Imports a module of the benchmark; its folder is importable only during the test."""
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture
def data(tmp_path, tiny_llama_config, tiny_tokenizer):
    torch.manual_seed(0)
    LlamaForCausalLM(tiny_llama_config).save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "sst2").mkdir()
    rows = [
        {"sentence": f"a {word} film number {i} .", "label": i % 2} for i in range(12) for word in ("dull", "fine")
    ]
    for split in ("train", "validation"):
        (tmp_path / "sst2" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "corpus").mkdir()
    text = "\n".join([json.dumps({"text": "the robot waters the plant . " * 20})] * 40)
    for split in ("train", "validation"):
        (tmp_path / "corpus" / f"{split}.jsonl").write_text(text)
    return tmp_path


def run(benchmark, monkeypatch, folder, config, *arguments):
    (folder / "config.yaml").write_text(config)
    argv = ["run.py", folder / "config.yaml", "--model", folder / "model", "--data_dir", folder]
    argv += ["--output_dir", folder / "out", "--results", folder / "results", *arguments]
    monkeypatch.setattr(sys, "argv", list(map(str, argv)))
    benchmark("run").main()
    return json.loads((folder / "results" / "tiny.json").read_text())


LANGUAGE_MODEL = """
name: tiny
title: a tiny model
model_name: tiny
budgets: [512, 2048]
text: {source: teacher, block_size: 32, sampled_tokens: 2048, eval_blocks: 2}
pretrain: {batch_size: 4, micro_batch_size: 2}
arms:
  plain: {title: plain, calibrate: false, pretrain: {}}
  warm: {title: warm, least_squares: true, warm_start: {budget_share: 0.5, batch_size: 2}, pretrain: {logits_loss_weight: 1.0}}
"""

TASK = """
name: tiny
title: a tiny model on SST-2
model_name: tiny
task: sst2
text: {block_size: 32, splits: [validation], eval_blocks: 2}
pretrain: {tokens: 256, batch_size: 4, micro_batch_size: 4}
finetune: {steps: 2, batch_size: 4, micro_batch_size: 4}
full_precision: {learning_rates: [1.0e-4]}
arms:
  bitnet_sft: {title: BitNet-SFT, student: {sub_norm: none}, finetune: {learning_rates: [1.0e-4, 1.0e-3]}}
  bitdistill: {title: BitDistill, pretrain: {}, finetune: {method: distill, options: {attention_layers: [-1]}}}
  others: {title: on other examples, pretrain: {}, finetune: {method: distill, other_examples: true, options: {attention_layers: [-1]}}}
  no_logits: {title: without logits, pretrain: {}, finetune: {method: distill, options: {logits_loss_weight: 0.0}}}
  from_teacher:
    title: from the teacher
    from_teacher: true
    warm_start: &warm {tokens: 200, batch_size: 4, steps_per_window: 2, rank: 2}
    finetune: {method: distill}
  start: {title: its start, from_teacher: true, warm_start: *warm}
  teacher_again: {title: the teacher once more, student: null, from_teacher: true, finetune: {learning_rates: [1.0e-4]}}
  from_again:
    title: from the teacher of two times
    from_teacher: true
    teacher_arm: teacher_again
    warm_start: *warm
    finetune: {method: distill}
  large: {title: a larger teacher, pretrain: {}, finetune: {method: distill, teacher: large}}
"""

ARMS = {
    "full precision", "fp_sft", "bitnet_sft", "bitdistill", "others", "no_logits", "from_teacher", "start", "teacher_again",
    "from_again",
}  # fmt: skip


def test_language_modelling(benchmark, data, monkeypatch, capsys):
    result = run(benchmark, monkeypatch, data, LANGUAGE_MODEL)
    rows = {(row["arm"], row["budget"]): row for row in result["rows"]}
    assert set(rows) == {("full precision", None), *((arm, b) for arm in ("plain", "warm") for b in (512, 2048))}
    for (arm, budget), row in rows.items():
        assert row["perplexity"]["teacher_samples"]["nll_per_token"] > 0
        if arm != "full precision":
            spent = row["stages"][0].get("warm_start", {}).get("trained_tokens", 0)
            assert (spent > 0) == (arm == "warm")
            assert spent + row["stages"][1]["tokens"] == pytest.approx(budget, abs=128)  # a step has 128 tokens
    capsys.readouterr()
    again = run(benchmark, monkeypatch, data, LANGUAGE_MODEL)
    assert again["rows"] == result["rows"] and "[pretrain-" not in capsys.readouterr().out
    assert str(data) not in json.dumps(result)
    benchmark("render").render(data / "results" / "tiny.json")
    text = (data / "results" / "tiny.md").read_text()
    assert "| plain |" in text and "after 0.002048 M tokens" in text and "(n=1)" in text
    assert (data / "results" / "tiny_teacher_samples.png").stat().st_size > 1000


def test_task(benchmark, data, monkeypatch, capsys):
    result = run(benchmark, monkeypatch, data, TASK)
    rows = {row["arm"]: row for row in result["rows"]}
    assert set(rows) == ARMS
    assert all(0 <= row["evaluation"]["accuracy"] <= 1 for row in rows.values())
    out = capsys.readouterr().out
    assert out.count("[pretrain-") == 1  # shared by its three arms
    assert out.count("[finetune-") == 1 + 2 + 1 + 1 + 1 + 1 + 1 + 1
    assert (out.count("[start-"), out.count("[evaluate-")) == (4, 1)
    assert rows["others"]["stages"][-1]["curve"] != rows["bitdistill"]["stages"][-1]["curve"]
    assert [stage["kind"] for stage in rows["start"]["stages"]] == ["start", "evaluate"]
    (again,) = rows["teacher_again"]["stages"]
    assert again["parent"] == rows["start"]["stages"][0]["settings"]["teacher_stage"]
    assert again["curve"] != rows["fp_sft"]["stages"][0]["curve"]
    start, distilled = rows["from_again"]["stages"]
    keys = {start["settings"]["teacher_stage"], distilled["settings"]["teacher_stage"]}
    (key,) = keys
    assert json.loads((data / "out" / "tiny" / f"finetune-{key}" / "result.json").read_text()) == again
    assert "large: left out" in out
    start = rows["from_teacher"]["stages"][0]
    assert 512 <= start["warm_start"]["calibration_tokens"] < 560  # whole examples, as many as the calibration wants
    stages = data / "out" / "tiny"
    (folder,) = (f.parent for f in stages.glob("start-*/result.json") if json.loads(f.read_text()) == start)
    student, teacher, base = (
        AutoModelForCausalLM.from_pretrained(path).get_input_embeddings().weight
        for path in (
            folder / "model",
            stages / f"finetune-{start['settings']['teacher_stage']}" / "model",
            data / "model",
        )
    )
    assert torch.equal(student, teacher) and not torch.equal(teacher, base)
    assert rows["bitnet_sft"]["stages"][-1]["settings"]["learning_rate"] in (1e-4, 1e-3)
    tried = rows["bitnet_sft"]["tried_learning_rates"]
    assert set(tried) == {"0.0001", "0.001"} and max(tried.values()) == rows["bitnet_sft"]["evaluation"]["accuracy"]
    assert rows["start"]["tried_learning_rates"] == {}
    assert str(data) not in json.dumps(result)
    benchmark("render").render(data / "results" / "tiny.json")
    text = (data / "results" / "tiny.md").read_text()
    assert "| BitDistill |" in text and f"{rows['bitdistill']['evaluation']['accuracy']:.4f}" in text
    assert "24 examples of the validation split" in text
    # A setting that changes runs again what depends on it, and nothing else.
    result = run(benchmark, monkeypatch, data, TASK.replace("tokens: 256", "tokens: 384"), "--only", "bitdistill")
    out = capsys.readouterr().out
    assert (out.count("[start-"), out.count("[pretrain-"), out.count("[finetune-")) == (0, 1, 1)
    # Of the rows in the file those stay whose settings are the same; where they came from is not lost.
    changed = {"bitdistill", "others", "no_logits"}  # the arms with pre-training
    after = {row["arm"]: row for row in result["rows"]}
    assert set(after) == ARMS - {"others", "no_logits"}
    assert all(after[arm] == rows[arm] for arm in ARMS - changed)
    assert after["bitdistill"] != rows["bitdistill"]


def test_rows_of_several_runs(benchmark, data, monkeypatch):
    titled = TASK.replace("title: BitNet-SFT", "title: no recipe")
    first = run(benchmark, monkeypatch, data, TASK, "--only", "bitnet_sft", "--note", "one machine")
    result = run(benchmark, monkeypatch, data, titled, "--only", "start", "--seeds", "0", "1", "--note", "another")
    kept = [row for row in result["rows"] if row["arm"] == "bitnet_sft"]
    assert kept == [{**first["rows"][-1], "title": "no recipe"}] and kept[0]["note"] == "one machine"
    assert [(row["arm"], row["seed"]) for row in result["rows"]] == [
        ("full precision", 0), ("fp_sft", 0), ("bitnet_sft", 0), ("start", 0), ("fp_sft", 1), ("start", 1)
    ]  # fmt: skip
    assert result["note"] == "another; one machine"
    benchmark("render").render(data / "results" / "tiny.json")
    assert "Another; one machine." in (data / "results" / "tiny.md").read_text()
    # What is true of every row has changed: nothing stays.
    result = run(benchmark, monkeypatch, data, TASK.replace("block_size: 32", "block_size: 64"), "--only", "start")
    assert [row["arm"] for row in result["rows"]] == ["full precision", "fp_sft", "start"]


def test_docstrings(benchmark, data, monkeypatch):
    docstrings = benchmark("docstrings")
    small = {"source_megabytes": 0.3, "train_examples": 60, "test_examples": 20}
    monkeypatch.setattr(docstrings, "SETTINGS", dataclasses.replace(docstrings.SETTINGS, **small))
    config = TASK.replace("task: sst2", "task: docstring_summary").replace("text: {", "text: {source: docstrings, ")
    rows = {row["arm"]: row for row in run(benchmark, monkeypatch, data, config)["rows"]}
    assert set(rows) == ARMS
    for row in rows.values():
        scores = row["evaluation"]
        assert 0 <= scores["token_accuracy"] <= 1 and scores["n"] == 20 and 0 < scores["chance_level"] < 1
    assert rows["bitdistill"]["perplexity"]["validation"]["nll_per_token"] > 0
    benchmark("render").render(data / "results" / "tiny.json")
    assert "token_accuracy" in (data / "results" / "tiny.md").read_text()


def test_unknown_options_are_refused(benchmark, tmp_path):
    load = benchmark("settings").load_settings
    (tmp_path / "a.yaml").write_text("name: a\ntitle: a\nmodel_name: a\narms: {plain: {title: a, pretrian: {}}}")
    with pytest.raises(ValueError, match=r"arms\.plain: unknown option 'pretrian'"):
        load(tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_text("name: a\ntitle: a\nmodel_name: a\narms: {plain: {title: a, from_teacher: true}}")
    with pytest.raises(ValueError, match=r"arms\.plain: from_teacher needs full_precision"):
        load(tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_text("name: a\ntitle: a\nmodel_name: a\narms: {plain: {title: a, student: null}}")
    with pytest.raises(ValueError, match=r"arms\.plain: without a student"):
        load(tmp_path / "a.yaml")
    for teacher in ("nobody", "plain"):
        (tmp_path / "a.yaml").write_text(
            f"name: a\ntitle: a\nmodel_name: a\narms: {{plain: {{title: a, teacher_arm: {teacher}}}}}"
        )
        with pytest.raises(ValueError, match=f"arms.plain: teacher_arm '{teacher}' is no arm with student: null"):
            load(tmp_path / "a.yaml")


@pytest.mark.parametrize("config", sorted((FOLDER / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_configurations(benchmark, config):
    settings = benchmark("settings").load_settings(config)
    assert settings.name == config.stem and settings.arms
