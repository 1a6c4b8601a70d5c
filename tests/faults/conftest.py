"""A tiny model and data for the commands, which are run in children of this process and killed."""

import json

import pytest
import torch
from transformers import LlamaForCausalLM


torch.set_num_threads(1)

QUIET = ["--report_to", "none", "--disable_tqdm", "true", "--use_cpu", "true", "--per_device_train_batch_size", "2"]


@pytest.fixture
def teacher(tmp_path, tiny_llama_config, tiny_tokenizer):
    torch.manual_seed(0)
    folder = tmp_path / "teacher"
    LlamaForCausalLM(tiny_llama_config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def commands(tmp_path, teacher):
    """`commands(name, output folder, **more options)`: the arguments of a short run of a command."""
    data = tmp_path / "data"
    data.mkdir()
    rows = [{"sentence": f"a {word} film number {i} .", "label": i % 2} for i in range(8) for word in ("dull", "fine")]
    for split in ("train", "validation"):
        (data / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (data / "corpus.txt").write_text("The robot waters the plant near the window.\n" * 40)
    text = ["--corpus", data / "corpus.txt", "--sample_by", "line", "--block_size", "32"]
    steps = ["--max_steps", "3", "--save_steps", "1", "--save_total_limit", "2", "--logging_steps", "1", *QUIET]
    options = {
        "pretrain": [*text, *steps],
        "distill": ["--task", "sst2", "--data_dir", data, "--teacher_model_name_or_path", teacher, *steps]
        + ["--attention_loss_weight", "0", "--max_eval_samples", "4"],
        "warm-start": [*text, "--batch_size", "2", "--steps_per_window", "2", "--window_layers", "1"]
        + ["--window_stride", "1", "--warm_start_tokens", "256"],
    }

    def make(name, output, **more):
        extra = [part for key, value in more.items() for part in (f"--{key}", value)]
        line = [name, "--model_name_or_path", teacher, "--output_dir", output, *options[name], *extra]
        return [str(part) for part in line]

    return make
