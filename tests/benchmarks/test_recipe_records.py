"""The example cards say what the records of their runs do, and `record_run.py` keeps what a card says."""

import json
import runpy
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from hf_bitdistill import pack
from hf_bitdistill.data import get_task
from hf_bitdistill.evaluation.score_record import Measurement, Record
from hf_bitdistill.modeling.sizes import bytes_by_kind
from hf_bitdistill.pages.tables import format_score
from hf_bitdistill.recipe.result import PACKED_ROW, RecipeResult, Row
from students import make_student


ROOT = Path(__file__).resolve().parents[2]
# Example card -> record.
CARDS = {
    "quickstart": "quickstart",
    "smollm2_sst2": "smollm2_sst2_standard",
    "smollm2_mnli": "smollm2_mnli_standard",
}


def disagreements(card, record):
    """What a record holds and a card does not say."""
    expected = []
    for row in record["table"]:
        score = row["score"]
        size = f"{row['bytes'] / 1e6:.1f} MB"
        rate = "" if row["tokens_per_second"] is None else f"{row['tokens_per_second']:,.0f}"
        value = format_score(score["metric"], score["value"], score["stderr"])
        expected.append(f"| {row['name']} | {value} | {size} | {rate} |")
    expected += [f"- {choice}" for choice in record["choices"]]
    sizes = record.get("sizes", {"bytes": {}})
    for name, size in sizes["bytes"].items():
        name = {"headers": "names and digests", "total": "in all"}.get(name, name)
        expected += [f"| {name} | {size / 1e6:.2f} |"] if size else []
    if "original_bfloat16" in sizes:
        expected.append(f"| the original in bfloat16 | {sizes['original_bfloat16'] / 1e6:.2f} |")
    expected += [record["note"]] if "note" in record else []
    expected += [f"{name} {value}" for name, value in record["machine"].items()]
    return [line for line in expected if line not in card]


def test_every_card_has_a_record():
    assert {file.stem for file in (ROOT / "model_cards").glob("*.md")} == {*CARDS, "README"}


@pytest.mark.parametrize("name", CARDS)
def test_a_card_says_what_its_record_does(name):
    card = (ROOT / "model_cards" / f"{name}.md").read_text(encoding="utf-8")
    record = json.loads((ROOT / "benchmarks" / "results" / "recipe" / f"{CARDS[name]}.json").read_text())
    assert disagreements(card, record) == []
    result, *_ = ModelCard(card).data.eval_results  # the first one is what the table shows
    packed = next(row["score"] for row in record["table"] if row["name"] == PACKED_ROW)
    assert (result.metric_value, result.metric_args["n"]) == (round(packed["value"], 4), packed["n"])


def test_a_run_is_recorded_with_bytes_and_a_card(tmp_path, monkeypatch):
    out = tmp_path / "out"
    pack(make_student(), inplace=True).save_pretrained(out / "packed")
    score = {"metric": "accuracy", "value": 0.5, "stderr": 0.1, "n": 24, "chance": 0.5, "more": {}}
    gap = {"value": 0.1, "stderr": 0.01}
    result = RecipeResult(
        out,
        {"model": "org/base", "dataset": "DATA/sst2"},
        {"window_steps": 0, "temperature": 5.0},
        "DATA/sst2: 10 to train on",
        {},
        table=[Row("teacher", score, 3_000_000, 5.0), Row(PACKED_ROW, score, 1_000_000, 50.0)],
        gap={"loss": gap, "accuracy": gap, "agreement": 0.9, "n": 5},
        plan={"stages": []},
        choices=["no distillation"],
        machine={"processor": "A CPU", "threads": 2},
        places={"dataset": str(tmp_path / "DATA" / "sst2")},
    )
    result.write()
    scores = {"task": "sst2", "accuracy": 0.5, "accuracy_stderr": 0.1, "n": 24}
    how = Measurement(task=get_task("sst2"), dataset="DATA/sst2", local=True)
    Record(scores, how, "rows", "bitdistill run", PACKED_ROW).write(out / "packed")
    argv = [
        "record_run.py",
        out,
        "--name",
        "tiny",
        "--model_name",
        "Base",
        "--dataset_name",
        "SST-2",
        "--results",
        tmp_path / "results",
    ]
    argv += ["--note", "Interrupted once.", "--card", tmp_path / "card.md"]
    monkeypatch.setattr(sys, "argv", list(map(str, argv)))
    runpy.run_path(str(ROOT / "benchmarks" / "record_run.py"), run_name="__main__")
    record = json.loads((tmp_path / "results" / "tiny.json").read_text())
    assert record["sizes"] == bytes_by_kind(out / "packed").to_dict() and record["note"] == "Interrupted once."
    assert str(tmp_path) not in json.dumps(record)
    card = (tmp_path / "card.md").read_text()
    assert disagreements(card, record) == [] and "bitdistill run --model org/base --dataset sst2" in card
    assert disagreements(card.replace("| in all | ", "| in all | 9"), record) == [
        f"| in all | {record['sizes']['bytes']['total'] / 1e6:.2f} |"
    ]
    # Of a student that somebody else measured since, there is no card of the run.
    Record(scores, how, "rows", "bitdistill evaluate").write(out / "packed")
    with pytest.raises(ValueError, match="not those of the run"):
        runpy.run_path(str(ROOT / "benchmarks" / "record_run.py"), run_name="__main__")
