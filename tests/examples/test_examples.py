"""The examples run, on a model and data made here."""

import json
import runpy
import sys
from pathlib import Path

import torch
from transformers import LlamaForCausalLM


EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run_example(name, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_distill_smollm2_sst2(tmp_path, monkeypatch, tiny_llama_config, tiny_tokenizer):
    torch.manual_seed(0)
    LlamaForCausalLM(tiny_llama_config).save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    rows = [
        {"sentence": f"a {word} film number {i} .", "label": i % 2} for i in range(12) for word in ("dull", "fine")
    ]
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "train.jsonl").write_text("\n".join([json.dumps({"text": "the robot waters the plant . " * 20})] * 40))
    arguments = ["--model", tmp_path / "base", "--data_dir", tmp_path, "--corpus", corpus]
    arguments += ["--output_dir", tmp_path / "out", "--steps", 2, "--pretrain_steps", 2, "--batch_size", 4]
    arguments += ["--block_size", 32, "--pretrain_batch_size", 2, "--micro_batch_size", 2]
    run_example("distill_smollm2_sst2.py", monkeypatch, *arguments)

    results = json.loads((tmp_path / "out" / "results.json").read_text())
    stages = results["stages"]
    assert set(stages) == {"base", "fp_sft", "bitnet_sft", "pretrained", "bitdistill", "packed"}
    assert stages["packed"]["evaluation"]["accuracy"] == stages["bitdistill"]["evaluation"]["accuracy"]
    assert stages["packed"]["megabytes"] < stages["bitdistill"]["megabytes"]
    assert "BitDistill, packed and reloaded" in (tmp_path / "out" / "table.md").read_text()
    assert str(tmp_path) not in json.dumps(results)

    before = (tmp_path / "out" / "table.md").read_text()
    run_example("distill_smollm2_sst2.py", monkeypatch, *arguments)  # everything is there: nothing runs again
    assert json.loads((tmp_path / "out" / "results.json").read_text())["stages"] == stages
    assert (tmp_path / "out" / "table.md").read_text() == before
