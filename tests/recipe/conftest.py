"""A tiny model that can learn a tiny task, data of every kind, and settings that take seconds."""

import json

import pytest

from hf_bitdistill.recipe import RecipeSettings, plan
from tiny_recipe import examples, make_csv, make_model, own_settings, without_figures


@pytest.fixture
def model(tmp_path, tiny_llama_config, tiny_tokenizer):
    return make_model(tmp_path / "model", tiny_llama_config, tiny_tokenizer)


@pytest.fixture
def own_csv(tmp_path):
    return make_csv(tmp_path / "opinions.csv")


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
    return RecipeSettings(**own_settings(model, own_csv, tmp_path / "out"))


@pytest.fixture
def no_figures(monkeypatch):
    """One test draws."""
    without_figures(monkeypatch.setattr)


@pytest.fixture
def quick_probe(monkeypatch):
    """Runs that ask for no time probe it in as few steps and rows as can be: it takes a third of them otherwise."""
    for name, value in {"_STEPS": 2, "_COUNTED_STEPS": 1, "_MEASURED_ROWS": 4, "_WRITTEN_ROWS": 1}.items():
        monkeypatch.setattr(plan, name, value)
