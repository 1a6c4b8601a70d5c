"""What a new student's SubLNs are calibrated with depends neither on the batch of a process nor on how many there are."""

import json

import pytest
import torch
from transformers import LlamaForCausalLM

from hf_bitdistill.cli import distill, pretrain
from hf_bitdistill.cli.main import main


class Enough(BaseException):
    pass


def _rows(monkeypatch, module, command, *arguments) -> list[list[int]]:
    """The rows that a command calibrates with, where it ends."""
    rows: list[list[int]] = []

    def calibrate(student, options, batches, training=None):
        for batch in batches:
            mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
            rows.extend(ids[own].tolist() for ids, own in zip(batch["input_ids"], mask, strict=True))
        raise Enough

    monkeypatch.setattr(module, "calibrate", calibrate)
    with pytest.raises(Enough):
        main([command, *map(str, arguments)])
    return rows


@pytest.mark.parametrize("command", ["distill", "pretrain"])
def test_rows_of_a_calibration(tmp_path, monkeypatch, tiny_llama_config, tiny_tokenizer, command):
    LlamaForCausalLM(tiny_llama_config).save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    examples = [{"sentence": f"film number {i} is fine.", "label": i % 2} for i in range(40)]
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, examples)))
    (tmp_path / "corpus.txt").write_text("".join(f"The robot waters plant {i}.\n" for i in range(200)))
    options = ["--model_name_or_path", tmp_path / "model", "--output_dir", tmp_path / "out", "--use_cpu", "true"]
    options += ["--report_to", "none", "--calibration_batches", 3]
    if command == "distill":
        options += ["--task", "sst2", "--data_dir", tmp_path, "--teacher_model_name_or_path", tmp_path / "model"]
    else:
        options += ["--corpus", tmp_path / "corpus.txt", "--sample_by", "line", "--block_size", 16]
    module = distill if command == "distill" else pretrain
    found = [
        _rows(monkeypatch, module, command, *options, "--per_device_train_batch_size", size) for size in (1, 4, 16)
    ]
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == (24 if command == "distill" else 3)
