"""A tiny model that can learn a tiny task, data of every kind, and settings that take seconds."""

import csv
import json

import pytest
import torch
from tiny_recipe import CHAT, FAST, examples
from transformers import LlamaForCausalLM

from hf_bitdistill.recipe import RecipeSettings


@pytest.fixture
def model(tmp_path, tiny_llama_config, tiny_tokenizer):
    torch.manual_seed(0)
    folder = tmp_path / "model"
    LlamaForCausalLM(tiny_llama_config).save_pretrained(folder)
    tiny_tokenizer.chat_template = CHAT
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def own_csv(tmp_path):
    """A file of one's own: other column names, three classes, a column that says nothing."""
    file = tmp_path / "opinions.csv"
    with file.open("w", newline="") as writer:
        table = csv.writer(writer)
        table.writerow(["opinion", "verdict", "id"])
        table.writerows([text, name, number] for number, (text, name) in enumerate(examples()))
    return file


@pytest.fixture
def chat(tmp_path):
    file = tmp_path / "chat.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": name}]}
        for text, name in examples()
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


@pytest.fixture
def completions(tmp_path):
    file = tmp_path / "completions.jsonl"
    rows = [{"prompt": f"{text} is", "completion": f" {name}"} for text, name in examples()]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


@pytest.fixture
def settings(model, own_csv, tmp_path):
    return RecipeSettings(
        model=str(model),
        dataset=str(own_csv),
        text_columns=["opinion"],
        label_column="verdict",
        output_dir=str(tmp_path / "out"),
        **FAST,
    )


@pytest.fixture
def no_figures(monkeypatch):
    """Drawing takes longer than all else of a tiny run; one test draws."""

    def draw(title, file, *_):
        file.write_bytes(b"no figure")
        return file

    for name in ("plot_bars", "plot_panels", "plot_points"):
        monkeypatch.setattr(f"hf_bitdistill.recipe.result.{name}", draw)
