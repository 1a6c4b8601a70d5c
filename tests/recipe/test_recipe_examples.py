"""What a run is made of its data: rows, what is left out of them and said of it, prompts; the same as `data` and `evaluate` see."""

import json
import re

import pytest
from datasets import Dataset
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from hf_bitdistill.cli import evaluate
from hf_bitdistill.data import TASKS
from hf_bitdistill.data.encoding import ONLY_PROMPT
from hf_bitdistill.data.sources import load_examples
from hf_bitdistill.data.view import look_at
from hf_bitdistill.evaluation.rows import load_rows
from hf_bitdistill.evaluation.score_record import Measurement
from hf_bitdistill.recipe import RecipeError, RecipeSettings
from hf_bitdistill.recipe import examples as module


@pytest.fixture
def tokenizer(model):
    return AutoTokenizer.from_pretrained(model)


@pytest.fixture
def load(model, tokenizer):
    config = AutoConfig.from_pretrained(model)

    def load(dataset=None, **options):
        settings = RecipeSettings(dataset=None if dataset is None else str(dataset), **options)
        return module.load(settings, tokenizer, config, 4, 0)

    return load


def write_films(file, count, undecodable=()):
    """CSV of which some rows are in Latin-1."""
    file.parent.mkdir(exist_ok=True)
    lines = [f"film {i} of a caf\u00e9,{'ab'[i % 2]}".encode() for i in range(count)]
    for row in undecodable:
        lines[row] = lines[row].replace("\u00e9".encode(), b"\xe9")
    file.write_bytes(b"\n".join([b"text,label", *lines]) + b"\n")
    return file


def write_rows(file, rows):
    file.parent.mkdir(exist_ok=True)
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def is_measured_again(found, tokenizer):
    return load_rows(found.how, tokenizer)[0][:] == found.evaluation[:]


def test_rows_that_are_not_utf8_are_counted(load, tokenizer, tmp_path):
    found = load(write_films(tmp_path / "films.csv", 60, [7]))
    assert (found.rows["read"], found.rows["not UTF-8"], len(found.evaluation)) == (54, 1, 6)
    assert "; 49 to train on, 4 of the training rows held out" in found.description
    assert ", 1 of 54 training rows left out (1 not UTF-8), 6 to evaluate on; no split" in found.description
    assert is_measured_again(found, tokenizer)
    write_films(tmp_path / "films" / "train.csv", 60)
    write_films(tmp_path / "films" / "validation.csv", 20, [3])
    found = load(tmp_path / "films")
    assert found.rows == {"read": 60, "trained on": 56} and len(found.evaluation) == 19
    assert found.description.endswith("; of 20 rows to measure on, not measured: 1 not UTF-8")
    assert is_measured_again(found, tokenizer)
    write_films(tmp_path / "films" / "validation.csv", 20, [3, 4, 5])
    with pytest.raises(ValueError, match=r"rows to measure on: 3 of 20 rows .* 3 not UTF-8"):
        load(tmp_path / "films")
    with pytest.raises(ValueError, match=r"9 of 55 rows .* 9 not UTF-8"):
        load(write_films(tmp_path / "films.csv", 60, range(9)))


def test_rows_that_cannot_be_used_are_told(load, tmp_path):
    rows = [{"text": f"a film number {i}", "label": "ab"[i % 2]} for i in range(60)]
    write_rows(tmp_path / "d" / "train.jsonl", [{"text": "a", "label": None}, {"text": " ", "label": "a"}, *rows])
    write_rows(tmp_path / "d" / "validation.jsonl", [{"text": None, "label": "b"}, *rows[:19]])
    said = load(tmp_path / "d").description
    assert "2 of 62 training rows left out (" in said and "1 empty text" in said and "1 without label" in said
    assert said.endswith("19 to evaluate on; of 20 rows to measure on, not measured: 1 empty text")


def test_a_row_of_which_only_the_prompt_is_left_is_left_out(load, tokenizer, tmp_path):
    texts = [("a film of old .", "it is old .")] * 40 + [("slow " * 150, "it is old .")] * 3
    texts += [("a film of old .", "slow " * 150)] * 3
    rows = [{"premise": p, "hypothesis": h, "label": ["no", "yes"][i % 2]} for i, (p, h) in enumerate(texts)]
    write_rows(tmp_path / "pairs" / "train.jsonl", rows)
    write_rows(tmp_path / "pairs" / "validation.jsonl", rows[:20])
    found = load(tmp_path / "pairs", max_length=96, max_left_out=0.2)
    assert found.rows == {"read": 46, "trained on": len(found.train), ONLY_PROMPT: 3}
    assert len(found.train) + len(found.held_out) == 43 and len(found.held_out_rows) == len(found.held_out)
    prompts = [tokenizer.decode(ids) for part in (found.train, found.held_out) for ids in part["input_ids"]]
    assert all(prompt.startswith(("Premise: a film of old .\n", "Premise: slow slow")) for prompt in prompts)
    assert sum(prompt.startswith("Premise: slow") for prompt in prompts) == 3
    assert max(map(len, found.train["input_ids"])) <= 96


def test_run_data_and_evaluate_ask_alike(load, tokenizer, tmp_path):
    rows = [{"sentence": f"a {'fine' if i % 2 else 'dull'} film {i}", "label": i % 2} for i in range(40)]
    for split in ("train", "validation"):
        write_rows(tmp_path / "sst2" / f"{split}.jsonl", rows)
    found = load(tmp_path / "sst2")
    view = look_at(load_examples(tmp_path / "sst2"), tokenizer, "model", context=256, samples=1)
    again = evaluate._recognized(Measurement("text", dataset=str(tmp_path / "sst2")))
    assert found.task == view.recognized.task == again.task == TASKS["sst2"]
    assert view.max_length == found.how.max_length == 128
    shown = "".join(text for text, *_ in view.samples[0].parts)
    assert shown in [tokenizer.decode(ids) for ids in (*found.train["input_ids"], *found.held_out["input_ids"])]


def test_a_text_file_is_read_by_paragraphs(load, tokenizer, tmp_path):
    file = tmp_path / "stories.txt"
    file.write_text("".join(f"The robot number {i}\nwaters a plant .\n\n" for i in range(40)))
    found = load(file, max_length=32)
    assert found.kind == "text" and found.rows == {"read": 36, "trained on": 33}
    ids = [token for block in found.train["input_ids"] for token in block]
    assert tokenizer.decode(ids).count("\nwaters a plant .</s>") == 33
    assert is_measured_again(found, tokenizer)


def test_options_that_the_data_do_not_read_are_refused(load, chat, completions, own_csv):
    own = {"text_columns": ["opinion"], "label_column": "verdict"}
    assert load(chat, turns="last").how.turns == "last"
    for dataset, options in ((completions, {}), (own_csv, own)):
        with pytest.raises(ValueError, match=f"turns 'last' is read of conversations alone .*{dataset.name} holds"):
            load(dataset, turns="last", **options)
    with pytest.raises(ValueError, match=r"turns 'last' is read of conversations alone .*task sst2 holds"):
        load(task="sst2", turns="last")
    with pytest.raises(ValueError, match="is a local path, and the configuration 'x' and the revision 'y' could only"):
        load(own_csv, dataset_config="x", dataset_revision="y", **own)


def test_a_task_alone_is_named(load, tmp_path, monkeypatch):
    long = ["slow " * 400 if i % 3 == 0 else "it is old ." for i in range(30)]
    rows = Dataset.from_dict({"film": ["a film ."] * 30, "more": long, "label": [0, 1] * 15})
    monkeypatch.setattr(module, "load_task_dataset", lambda task, split: rows.select(range(2)))
    with pytest.raises(RecipeError, match=r"^task sst2 has 2 usable training rows: too few"):
        load(task="sst2")
    # Its rows come in its form, whatever stands in the columns.
    file = tmp_path / "tone.yaml"
    file.write_text('prompt: "{film} {more} =>"\ntarget: label\nlabels: {B: bad, G: good}\ndataset: owner/tones\n')
    monkeypatch.setattr(module, "load_task_dataset", lambda task, split: rows)
    found = load(task=str(file), max_left_out=0.5)
    assert found.task.label_words == ("bad", "good") and found.rows[ONLY_PROMPT] == 10
    with pytest.raises(ValueError, match=f"^task {re.escape(str(file))}: 10 of 30 rows"):
        load(task=str(file))


def test_a_perplexity_has_its_error_and_no_most_frequent_answer(load, model, completions, tmp_path):
    trained = AutoModelForCausalLM.from_pretrained(model)
    score = load(completions).score(trained)
    assert (score.metric, set(score.more)) == ("token_accuracy", {"perplexity", "perplexity_stderr"})
    assert 0 < score.more["perplexity_stderr"] < score.more["perplexity"] and score.chance is not None
    file = tmp_path / "ask.yaml"
    file.write_text('prompt: "{prompt}"\ntarget: completion\nmetric: perplexity\n')
    score = load(completions, task=str(file)).score(trained)
    assert score.metric == "perplexity" and score.chance is None and score.more["chance_perplexity"] > 1
