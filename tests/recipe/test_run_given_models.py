"""Runs with a teacher of another shape, with adapters, and with models of the Hub."""

import io
import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from hf_bitdistill.recipe import run_recipe
from hf_bitdistill.recipe.progress import Progress
from tiny_recipe import NOT_FINE_TUNED, make_model, put_on_hub


pytestmark = pytest.mark.usefixtures("no_figures", "quick_probe")

GIVEN = {**NOT_FINE_TUNED, "check_teacher": False, "keep_only_better": False}


@pytest.fixture
def adapter(model, tmp_path):
    torch.manual_seed(1)
    config = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(model), config).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


class Rows(Progress):
    """Keeps what it is told of evaluations."""

    def __init__(self):
        super().__init__(io.StringIO())
        self.rows, self.left = [], []

    def show_rows(self, done, total):
        super().show_rows(done, total)
        self.rows.append((self._title, done, total))
        self.left.append(self.expected.get("pack and evaluate"))


def test_a_teacher_of_another_shape(settings, tmp_path, tiny_llama_config, tiny_tokenizer):
    """The student is made of the model that is given, and it is what table and card name."""
    tiny_llama_config.update({"hidden_size": 48, "num_hidden_layers": 3})
    larger = make_model(tmp_path / "larger", tiny_llama_config, tiny_tokenizer)
    progress = Rows()
    result = run_recipe(settings, teacher=str(larger), progress=progress, **GIVEN)
    packed = json.loads((result.paths["packed"] / "config.json").read_text())
    assert (packed["hidden_size"], packed["num_hidden_layers"]) == (32, 2)
    table = {row.name: row for row in result.table}
    assert list(table)[:2] == ["base model", "teacher"]
    sizes = {name: (tmp_path / name / "model.safetensors").stat().st_size for name in ("model", "larger")}
    assert (table["base model"].bytes, table["teacher"].bytes) == (sizes["model"], sizes["larger"])
    said = "\n".join(result.choices)
    assert "hidden_size 48, not 32, num_hidden_layers 3, not 2) and only teaches" in said
    assert "hidden states: teacher and student are not equally wide" in said
    card = (result.paths["packed"] / "README.md").read_text()
    assert "`model`, a local folder" in card
    assert any(each["what"] == "distillation" and each["steps"] for each in result.tries)
    # Each evaluation says where it begins and how far it is.
    assert progress.rows.count(("pack and evaluate", 0, 20)) == progress.rows.count(("pack and evaluate", 20, 20)) == 4
    # What is expected of all of them becomes less with each, and is forgotten after none.
    assert None not in progress.left and progress.left[0] > progress.left[-1]
    assert ("teacher", 0, 18) in progress.rows and ("distillation", 18, 18) in progress.rows


@pytest.mark.parametrize("where", ["folder", "Hub"])
def test_an_adapter_as_the_model(where, settings, adapter, model, tmp_path):
    """Whatever is read of the model is read of the one that it adapts; nothing is fine-tuned, and nothing is planned to be."""
    name = str(adapter) if where == "folder" else put_on_hub(adapter, f"someone/{tmp_path.name}")
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("\n".join([json.dumps({"text": "the robot waters a green plant . " * 20})] * 60))
    more = {"compare": True} if where == "Hub" else {"corpus": str(corpus), "corpus_tokens": 1024, "block_size": 32}
    result = run_recipe(settings, model=name, **GIVEN, **more)
    table = {row.name: row for row in result.table}
    assert table["base model"].bytes == (model / "model.safetensors").stat().st_size
    assert ("BitNet-SFT (no recipe)" in table) == ("compare" in more)
    assert "teacher" not in [stage["title"] for stage in result.plan["stages"]]
    assert result.settings["model"] == name
    # The teacher is the adapter, merged.
    merged = AutoModelForCausalLM.from_pretrained(result.paths["teacher"])
    plain = AutoModelForCausalLM.from_pretrained(model)
    ids = torch.arange(5, 20)[None]
    assert not torch.allclose(merged(ids).logits, plain(ids).logits, atol=1e-3)


def test_a_model_of_the_hub(settings, model, tmp_path):
    """Its size is known, and a stage is of the commit that it was made of."""
    name = put_on_hub(model, "someone/moving", "0" * 40)
    short = {"model": name, "window_steps": 0, "distill_examples": 0, "teacher_examples": 32, "check_teacher": False}
    first = run_recipe(settings, **short)
    assert first.table[0].bytes == (model / "model.safetensors").stat().st_size
    lines = io.StringIO()
    run_recipe(settings, progress=Progress(lines), **short)
    assert "teacher: was done before" in lines.getvalue()
    torch.manual_seed(2)
    moved = shutil.copytree(model, tmp_path / "moved")
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model)).save_pretrained(moved)
    put_on_hub(moved, name, "1" * 40)
    lines = io.StringIO()
    run_recipe(settings, progress=Progress(lines), **short)
    assert "teacher: took" in lines.getvalue()
