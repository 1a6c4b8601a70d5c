"""The benchmark of start values, on a model and text made here."""

import json
import runpy
import sys
from pathlib import Path

import torch
from transformers import LlamaForCausalLM


SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "bench_warm_start.py"


def test_bench_warm_start(tmp_path, monkeypatch, tiny_llama_config, tiny_tokenizer):
    torch.manual_seed(0)
    LlamaForCausalLM(tiny_llama_config).save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    text = "\n".join([json.dumps({"text": "the robot waters the plant . " * 20})] * 40)
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text(text)
    output = tmp_path / "result.json"
    argv = [SCRIPT, "--model", tmp_path / "model", "--name", "tiny", "--corpus", tmp_path, "--block_size", 32]
    argv += [
        "--eval_blocks",
        2,
        "--tokens",
        512,
        "--options",
        '{"steps_per_window": 3, "rank": 4}',
        "--output",
        output,
    ]
    monkeypatch.setattr(sys, "argv", list(map(str, argv)))
    runpy.run_path(str(SCRIPT), run_name="__main__")
    result = json.loads(output.read_text())
    assert list(result["results"]) == [
        "full precision",
        "SubLN at one",
        "SubLN calibrated",
        "SubLN calibrated, least squares",
        "warm start",
    ]
    assert str(tmp_path) not in output.read_text()
    table = output.with_suffix(".md").read_text()
    assert f"{result['results']['warm start']['nll_per_token']:.3f}" in table and "| 0 to 1 |" in table
