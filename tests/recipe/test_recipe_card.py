"""The card of a run's student: for people, and what the Hub reads of it."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import yaml
from huggingface_hub.repocard_data import model_index_to_eval_results

import hf_bitdistill
from hf_bitdistill.data import get_task
from hf_bitdistill.evaluation.score_record import Measurement
from hf_bitdistill.hub.cards import build_card
from hf_bitdistill.machine.environment import describe_environment
from hf_bitdistill.recipe import RecipeSettings
from hf_bitdistill.recipe.result import PACKED_ROW, RecipeResult, Row
from hf_bitdistill.recipe.run_facts import base_of, command, places_of, record_of, run_facts
from students import make_student


NUMBERS = {
    "teacher_learning_rates": [5e-5, 2e-4],
    "window_steps": 400,
    "corpus_tokens": 1_000_000,
    "distill_examples": 6400,
    "attention_loss_weight": 100.0,
    "temperature": 5.0,
    "compare_learning_rate": 5e-4,
}
SCORE = {"metric": "accuracy", "value": 0.87654, "stderr": 0.0123, "n": 872, "chance": 0.51, "more": {}}


def result(tmp_path, **settings):
    gap = {"value": 0.1, "stderr": 0.01}
    return RecipeResult(
        tmp_path / "students" / "smol-sst2",
        {"dataset": str(tmp_path / "sst2"), "output_dir": str(tmp_path / "out"), "compare": True, **settings},
        NUMBERS,
        f"{tmp_path / 'sst2'}: task sst2; 10 to train on",
        {},
        table=[Row("base model", SCORE, 10_000_000), Row(PACKED_ROW, SCORE, 2_000_000, 123.4)],
        gap={"loss": gap, "accuracy": gap, "agreement": 0.9, "n": 5},
        choices=["the distillation is kept"],
        kept=["model.layers.2.mlp.down_proj"],
        plan={"stages": [{"title": "teacher", "steps": 400, "tokens": 1234, "seconds": 5}]},
        seconds={"teacher": 6.0},
        machine={"date": "2026-11-27", "processor": "A CPU", "threads": 2, "hf-bitdistill": "0.1"},
    )


def card(tmp_path, made, base, how, monkeypatch):
    class NoSizes:
        ternary_share, weight_bits, kinds = 0.79, 2.0, {"ternary codes": 1}

        def markdown(self):
            return "| sizes |"

    monkeypatch.setattr("hf_bitdistill.recipe.run_facts.bytes_by_kind", lambda folder: NoSizes())
    folder = tmp_path / "packed"
    make_student().config.save_pretrained(folder)
    record = record_of(made, SimpleNamespace(task=how.task, how=how), "rows")
    return build_card(run_facts(folder, "packed", made, base, record))


def test_a_card_is_complete_and_holds_no_path_of_this_machine(tmp_path, monkeypatch):
    base = tmp_path / "SmolLM2"
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: apache-2.0\nbase_model: owner/SmolLM2\n---\n")
    how = Measurement(task=get_task("sst2"), dataset=str(tmp_path / "sst2"), split="validation")
    made = card(tmp_path, result(tmp_path), str(base), how, monkeypatch)
    text = str(made)
    assert str(tmp_path) not in text and "{{" not in text and "None" not in text and "\n\n\n" not in text
    assert "87.7 ± 1.2 %" in text and "123" in text and "A CPU, 2 threads" in text
    assert "import hf_bitdistill" in text and "optimum.bitnet" in text and "79% of its weights" in text
    assert (
        "| teacher | 400 | 1,234 | 6 s |" in text and "In full precision stayed: model.layers.2.mlp.down_proj" in text
    )
    assert "bitdistill run --model owner/SmolLM2 --dataset sst2 --output_dir out --compare true" in text
    data = made.data
    assert (data.base_model, data.base_model_relation, data.license) == ("owner/SmolLM2", "quantized", "apache-2.0")
    assert data.datasets is None and data.library_name == "transformers" and data.pipeline_tag == "text-generation"
    # As the Hub reads it.
    name, scores = model_index_to_eval_results(yaml.safe_load(data.to_yaml())["model-index"])
    assert name == "smol-sst2" and scores[0].metric_value == 0.8765 and scores[0].dataset_split == "validation"


def test_what_is_not_known_is_absent(tmp_path, monkeypatch):
    how = Measurement(kind="messages", dataset="owner/chats", dataset_config="en", dataset_revision="abc")
    made = result(tmp_path)
    made.table[-1] = dataclasses.replace(made.table[-1], tokens_per_second=None)
    made.choices = made.kept = []
    made.settings["dataset"] = "owner/chats"
    found = card(tmp_path, made, str(tmp_path / "nowhere"), how, monkeypatch)
    text = str(found)
    assert "## Speed" not in text and "asked with this prompt" not in text and "stayed:" not in text
    assert "`nowhere`, a local folder" in text
    data = found.data
    assert data.base_model is None and data.license is None and "base_model_relation" not in data.to_dict()
    assert data.datasets == ["owner/chats"]
    assert data.eval_results[0].dataset_type == "owner/chats" and data.eval_results[0].dataset_config == "en"


def test_the_numbers_that_were_used(tmp_path, monkeypatch):
    how = Measurement(kind="messages", dataset="owner/chats")
    made = result(tmp_path)
    made.curves = {"teacher": [{"step": 1, "loss": 1.0}]}
    text = str(card(tmp_path, made, "org/model", how, monkeypatch))
    for row in (
        "| teacher_learning_rates | 5e-05, 0.0002 |", "| window_steps | 400 |", "| attention_loss_weight | 100 |", "| temperature | 5 |",
        "| compare_learning_rate | 0.0005 |", "| seed | 0 |",
    ):  # fmt: skip
        assert row in text, row
    assert "corpus_tokens" not in text and "hf-bitdistill 0.1" in text.split("Machine:")[1]
    # What was not done used no number.
    made.numbers, made.settings, made.curves = {**NUMBERS, "window_steps": 0, "distill_examples": 0}, {}, {}
    text = str(card(tmp_path, made, "org/model", how, monkeypatch))
    for name in NUMBERS:
        assert f"| {name} |" not in text, name


def test_the_machine_tells_the_version():
    assert describe_environment()["hf-bitdistill"] == hf_bitdistill.__version__


def test_what_was_a_path_is_no_id_anywhere(tmp_path, monkeypatch):
    """Also where a relative path leads nowhere."""
    for name in ("BASE", "DATA/sst2", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "BASE" / "README.md").write_text("---\nlicense: mit\n---\n")
    monkeypatch.chdir(tmp_path)
    settings = RecipeSettings(model="BASE", dataset="DATA/sst2", teacher="org/teacher", output_dir="proj/out")
    made = result(tmp_path, **settings.to_dict())
    made.places = places_of(settings)
    assert made.places == {"model": str(tmp_path / "BASE"), "dataset": str(tmp_path / "DATA" / "sst2")}
    how = Measurement(task=get_task("sst2"), dataset="DATA/sst2")
    recorded = json.loads(json.dumps(how.to_dict()))
    monkeypatch.chdir(tmp_path / "elsewhere")
    how = Measurement.from_dict(recorded, "evaluation.json")
    found = card(tmp_path, made, base_of(made), how, monkeypatch)
    assert found.data.base_model is None and found.data.datasets is None and found.data.license == "mit"
    assert "`BASE`, a local folder" in found.content and "[org/teacher]" in found.content
    assert (
        "bitdistill run --model BASE --dataset sst2 --output_dir out --compare true --teacher org/teacher"
        in found.content
    )
    # As it is read from a repository, without the folders above.
    made.places = {name: Path(place).name for name, place in made.places.items()}
    assert card(tmp_path, made, base_of(made), how, monkeypatch).data.base_model is None


def test_the_command_is_one_that_can_be_typed(tmp_path):
    made = result(tmp_path, label_words=["very bad", "good"], lora=False, push_to="me/x")
    line = command(made, str(tmp_path / "SmolLM2"))
    assert line == (
        "bitdistill run --model SmolLM2 --dataset sst2 --output_dir out --compare true --label_words 'very bad' good --lora false"
    )
