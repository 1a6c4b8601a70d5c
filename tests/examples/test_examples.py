"""The examples run, on a model and data made here."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from hf_bitdistill import apply_bitnet, pack
from hf_bitdistill.recipe import efforts


EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run_example(name, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_distill_smollm2_sst2(tmp_path, monkeypatch, tiny_llama_config, tiny_tokenizer, capsys, warm_measure):
    torch.manual_seed(0)
    LlamaForCausalLM(tiny_llama_config).save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    rows = [
        {"sentence": f"a {word} film number {i} .", "label": int(word == "fine")}
        for i in range(60)
        for word in ("dull", "fine")
    ]
    (tmp_path / "data").mkdir()
    for split in ("train", "validation"):
        (tmp_path / "data" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    # The smallest effort, smaller: the model has to learn one word.
    tiny = efforts.Effort(
        teacher_examples=800, teacher_epochs=9, teacher_learning_rates=(1e-2,), window_steps=2, keep_massive_ratio=0.0,
        distill_examples=64, distill_learning_rates=(1e-3,), held_out_rows=24,
    )  # fmt: skip
    monkeypatch.setitem(efforts.EFFORTS, "quick", tiny)
    arguments = ["--model", tmp_path / "base", "--dataset", tmp_path / "data", "--output_dir", tmp_path / "out"]
    run_example("distill_smollm2_sst2.py", monkeypatch, *arguments)

    result = json.loads((tmp_path / "out" / "run" / "result.json").read_text())
    scores = {row["name"]: row["score"] for row in result["table"]}
    assert {"base model", "teacher", "ternary student, packed", "BitNet-SFT (no recipe)"} <= set(scores)
    assert (tmp_path / "out" / "run" / "packed" / "model.safetensors").is_file()
    assert "The packed student is in" in capsys.readouterr().out


@pytest.fixture
def texts(tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text("\n".join(json.dumps({"text": f"a {word} film"}) for word in ("dull", "fine", "long") * 3))
    return file


def test_lora_on_packed(tmp_path, monkeypatch, tiny_llama_config, tiny_tokenizer, texts, capsys, native_decoder):
    torch.manual_seed(0)
    pack(apply_bitnet(LlamaForCausalLM(tiny_llama_config))).save_pretrained(tmp_path / "packed")
    tiny_tokenizer.save_pretrained(tmp_path / "packed")
    before = (tmp_path / "packed" / "model.safetensors").read_bytes()
    arguments = [
        "--model",
        tmp_path / "packed",
        "--dataset",
        texts,
        "--output_dir",
        tmp_path / "out",
        "--max_steps",
        2,
    ]
    run_example("lora_on_packed.py", monkeypatch, *arguments)
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "packed" / "model.safetensors").read_bytes() == before
    printed = capsys.readouterr().out
    assert "trainable params" in printed and "with adapter: Once upon a time" in printed


def test_trl_sft(tmp_path, monkeypatch, tiny_llama_config, tiny_tokenizer, texts, capsys):
    pytest.importorskip("trl")
    torch.manual_seed(0)
    LlamaForCausalLM(tiny_llama_config).save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    arguments = ["--model", tmp_path / "base", "--dataset", texts, "--output_dir", tmp_path / "out", "--max_steps", 1]
    run_example("trl_sft.py", monkeypatch, *arguments)
    assert (tmp_path / "out" / "packed" / "model.safetensors").is_file()
    config = json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "out" / "packed")
    assert "an adapter of it in" in capsys.readouterr().out


def test_import_gguf(tmp_path, monkeypatch, tiny_tokenizer, capsys):
    monkeypatch.syspath_prepend(str(EXAMPLES.parent / "tests" / "importing"))
    from gguf_files import GgufModel

    GgufModel("qwen3", "Q2_0-128", "block", tokenizer=tiny_tokenizer).save(tmp_path / "model.gguf")
    arguments = [tmp_path / "model.gguf", tmp_path / "out", "--prompt", "the little robot", "--max_new_tokens", 4]
    run_example("import_gguf.py", monkeypatch, *arguments)
    told = capsys.readouterr().out
    assert "one scale a group" in told and "rounding activations to 8 bits moves" in told
    assert "the little robot" in told.splitlines()[-1]
