"""The store, fingerprints, the order of examples, the lines of a run, the examples of a built-in task."""

import io
import json
import threading

import pytest
from datasets import Dataset
from transformers import AutoConfig, AutoTokenizer

from hf_bitdistill.data.fingerprint import fingerprint_rows
from hf_bitdistill.recipe import RecipeError, RecipeSettings
from hf_bitdistill.recipe.examples import load
from hf_bitdistill.recipe.order import in_order
from hf_bitdistill.recipe.progress import Progress, duration
from hf_bitdistill.recipe.store import StageStore, alone, fingerprint_model, fingerprint_text
from hf_bitdistill.recipe.train import Machine, micro_batch, steps_for
from tiny_recipe import put_on_hub


def test_store_runs_once_and_after_its_parent(tmp_path):
    store, calls = StageStore(tmp_path, lambda *_: None), []

    def work(folder):
        calls.append(folder.name)
        (folder / "checkpoints").mkdir(exist_ok=True)
        return {"value": len(calls)}

    def fail(folder):
        (folder / "checkpoints").mkdir()
        raise RuntimeError

    first = store.run("a", {"x": 1}, work)
    assert store.run("a", {"x": 1}, fail).result == first.result and len(calls) == 1
    child, other = (store.run("b", {"y": 1}, work, parent) for parent in (first, store.run("a", {"x": 2}, work)))
    assert child.key != other.key and not (first.folder / "checkpoints").exists()
    with pytest.raises(RuntimeError):
        store.run("c", {}, fail)
    # What it left is still there for the next try.
    assert list(tmp_path.glob("c-*/checkpoints")) and not list(tmp_path.glob("c-*/result.json"))


def test_a_stage_that_was_interrupted_counts_all_it_took(tmp_path, monkeypatch):
    store, clock = StageStore(tmp_path, lambda *_: None), [0.0]
    monkeypatch.setattr("hf_bitdistill.recipe.store.time.perf_counter", lambda: clock[0])

    def work(folder):
        clock[0] += 10.0
        if clock[0] < 25.0:
            raise KeyboardInterrupt
        return {}

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            store.run("a", {}, work)
    clock[0] += 1000.0
    result = store.run("a", {}, work).result
    assert (result["seconds"], result["interruptions"]) == (30.0, 2)
    assert "interruptions" not in store.run("b", {}, work).result
    assert not list(tmp_path.glob("*/taken.json"))


def test_a_stage_that_was_killed_counts_what_it_took(tmp_path, monkeypatch):
    from hf_bitdistill.recipe import store as module

    store, clock, left = StageStore(tmp_path, lambda *_: None), [0.0], []
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(module, "_TAKEN_SECONDS", 0.01)

    def killed(folder):
        file = folder / "taken.json"
        assert json.loads(file.read_text()) == {"seconds": 0.0, "interruptions": 1}
        clock[0] += 40.0
        for _ in range(500):
            if json.loads(file.read_text())["seconds"] == 40.0:
                break
            threading.Event().wait(0.01)
        left.append((file, file.read_text()))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.run("a", {}, killed)
    # A kill writes nothing at its end.
    file, text = left[0]
    file.write_text(text)
    clock[0] += 1000.0

    def works(folder):
        clock[0] += 5.0
        return {}

    result = store.run("a", {}, works).result
    assert (result["seconds"], result["interruptions"]) == (45.0, 1) and not file.exists()
    assert not any("_write_on" in thread.name for thread in threading.enumerate())


def test_two_runs_do_not_share_a_folder(tmp_path):
    with alone(tmp_path / "run"), pytest.raises(RecipeError, match="another run is at work"):
        with alone(tmp_path / "run"):
            pass
    with alone(tmp_path / "run"):
        pass


def test_fingerprints(tmp_path, model):
    rows = [{"a": [1, 2], "b": "x"}, {"a": [3], "b": None}]
    dataset = Dataset.from_list(rows)
    assert fingerprint_rows(dataset) == fingerprint_rows(Dataset.from_list([{"b": r["b"], "a": r["a"]} for r in rows]))
    assert fingerprint_rows(dataset) != fingerprint_rows(dataset.select([1, 0]))
    before = fingerprint_model(model)
    assert before == fingerprint_model(str(model)) and fingerprint_model("someone/model") == "someone/model"
    file = model / "model.safetensors"
    # On the Hub, of which commit.
    put_on_hub(model, "someone/fingerprinted", "0123abcd")
    assert fingerprint_model("someone/fingerprinted") == "someone/fingerprinted@0123abcd"
    put_on_hub(model, "someone/fingerprinted", "4567ef01")
    assert fingerprint_model("someone/fingerprinted") == "someone/fingerprinted@4567ef01"
    assert fingerprint_model("no/repository/at/all") == "no/repository/at/all"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert fingerprint_model(model) != before


def test_fingerprint_of_a_text(tmp_path):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text("one")
    here, there = (fingerprint_text(str(tmp_path / name)) for name in ("here", "there"))
    assert here == there, "a copy is the same text, whatever its time"
    (tmp_path / "there" / "a.txt").write_text("two")
    assert fingerprint_text(str(tmp_path / "there")) != here
    assert fingerprint_text("owner/corpus") == "owner/corpus"


def test_order():
    rows = Dataset.from_dict({"input_ids": [[0] * (1 + 7 * n % 40) for n in range(50)], "n": list(range(50))})
    order = in_order(rows, 25, 4, seed=1)["n"]
    assert len(order) == 100 and sorted(order[:50]) == sorted(order[50:]) == list(range(50))
    assert (
        order[:50] != order[50:] and order == in_order(rows, 25, 4, seed=1)["n"] != in_order(rows, 25, 4, seed=2)["n"]
    )
    lengths = [len(ids) for ids in in_order(rows, 12, 4, seed=1)["input_ids"]]
    spread = [max(lengths[i : i + 4]) - min(lengths[i : i + 4]) for i in range(0, 48, 4)]
    assert sum(spread) / len(spread) < 6


def test_sizes():
    assert steps_for(6400, 3.0, 100, 16) == 18 and steps_for(64, 3.0, 100, 16) == 4 and steps_for(3, 1.0, 3, 16) == 1
    large = AutoConfig.for_model("llama", hidden_size=8192, num_hidden_layers=80, vocab_size=128_000)
    small = AutoConfig.for_model("llama", hidden_size=64, num_hidden_layers=2, vocab_size=384)
    machine = Machine(bf16=False)
    assert micro_batch(16, 64, small, machine, 10_000) == 16 and micro_batch(16, 8192, large, machine, 10_000) == 1
    # Nothing is left beside gradients and states: one example at a time is the least there is.
    assert micro_batch(16, 64, small, machine, 10**15) == 1


def test_activations_of_16_bits_are_smaller(monkeypatch):
    model = AutoConfig.for_model("llama", hidden_size=576, num_hidden_layers=30, vocab_size=384)
    monkeypatch.setattr(
        "hf_bitdistill.recipe.train.free_memory", lambda device: 14 * 1000 + 2 * 8 * 100 * 130 * 30 * 576
    )
    assert micro_batch(16, 100, model, Machine(bf16=False), 1000) == 4  # (logits and losses take the rest of eight)
    assert micro_batch(16, 100, model, Machine(bf16=True), 1000) == 8


def test_lines(monkeypatch):
    assert [duration(s) for s in (3723, 200, 12.4, -1)] == ["1 h 02 min", "3 min 20 s", "12 s", "0 s"]
    clock = [0.0]
    monkeypatch.setattr("hf_bitdistill.recipe.progress.time.perf_counter", lambda: clock[0])
    lines = io.StringIO()
    progress = Progress(lines)
    progress.plan({"teacher": 100, "distillation": 300})
    with progress.stage("teacher"):
        for done in range(1, 11):
            clock[0] = done * 10.0
            progress.show(done, 20, 0.5)
    # One line a minute: at 60 s six of twenty steps are done.
    assert lines.getvalue() == "  teacher: step 6 of 20, 2 min 20 s left, of the run about 7 min 20 s, loss 0.5\n"
    lines.truncate(lines.seek(0))
    with progress.stage("start"):
        # Goes on after half of it; the first step waits for a way through the first half.
        for at, done in ((120, 10), (900, 11), (930, 12), (960, 13)):
            clock[0] = at
            progress.show(done, 20)
    assert lines.getvalue().splitlines() == [
        "  start: goes on after step 10 of 20",
        "  start: step 13 of 20, 3 min 30 s left, of the run about 8 min 30 s",
    ]


def test_lines_of_an_evaluation(monkeypatch):
    clock, lines = [0.0], io.StringIO()
    monkeypatch.setattr("hf_bitdistill.recipe.progress.time.perf_counter", lambda: clock[0])
    progress = Progress(lines)
    progress.plan({"pack and evaluate": 400, "BitNet-SFT": 100, "speed": 20})
    with progress.stage("pack and evaluate", in_parts=True):
        # Ten seconds pass before the first row: a model is loaded.
        for at, done in ((10, 0), (30, 20), (80, 50)):
            clock[0] = at
            progress.show_rows(done, 100)
    # 70 s for the other half, 250 s for other models, 120 s for what comes after them.
    assert lines.getvalue() == "  pack and evaluate: row 50 of 100, 1 min 10 s left, of the run about 7 min 20 s\n"
    progress.took("pack and evaluate", 150)
    lines.truncate(lines.seek(0))
    with progress.stage("BitNet-SFT"):
        progress.show(0, 10)
        clock[0] = 150
        progress.show(5, 10)
    # Evaluations are still to come.
    assert lines.getvalue() == "  BitNet-SFT: step 5 of 10, 1 min 10 s left, of the run about 5 min 40 s\n"


def test_a_built_in_task_is_known_by_its_name(tmp_path, model):
    folder = tmp_path / "sst2"
    folder.mkdir()
    rows = [{"sentence": f"a {word} film {n}", "label": n % 2} for n, word in enumerate(["dull", "fine"] * 10)]
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tokenizer, config = AutoTokenizer.from_pretrained(model), AutoConfig.from_pretrained(model)

    def task(**options):
        return load(RecipeSettings(dataset=str(folder), **options), tokenizer, config, 8, 0).task

    assert task().prompt.startswith("Review: {sentence}")
    assert task(label_words=["bad", "good"]).label_words == ("bad", "good")
    own = tmp_path / "own.yaml"
    own.write_text('prompt: "{sentence} =>"\ntarget: label\nlabels: [minus, plus]\n')
    assert task(task=str(own)).label_words == ("minus", "plus")
    loaded = load(RecipeSettings(dataset=str(folder)), tokenizer, config, 8, 6)
    # A tenth of the training rows at most; never a row of the evaluation split.
    assert (len(loaded.train), len(loaded.held_out), len(loaded.evaluation)) == (18, 2, 6)
    # Which split it is, is told; that it was asked for, is not.
    assert (loaded.how.split, loaded.how.measured_split, loaded.how.is_local) == (None, "validation", True)
    (folder / "validation.jsonl").rename(folder / "test.jsonl")
    loaded = load(RecipeSettings(dataset=str(folder)), tokenizer, config, 8, 6)
    assert loaded.how.measured_split == "test" and loaded.how.to_dict()["local"] is True
    loaded = load(RecipeSettings(dataset=str(folder / "train.jsonl"), task="sst2"), tokenizer, config, 2, 6)
    assert loaded.how.measured_split is None  # a part of the training rows


def test_a_stage_that_is_killed_at_its_end_is_not_done_again(tmp_path, monkeypatch):
    from hf_bitdistill.recipe import store as module

    store, works = StageStore(tmp_path, lambda *_: None), []

    def work(folder):
        works.append((folder / "checkpoints").is_dir())
        (folder / "checkpoints").mkdir(exist_ok=True)
        return {}

    write = module.write_json

    def killed(path, value):
        if path.name == "result.json":
            raise KeyboardInterrupt
        write(path, value)

    monkeypatch.setattr(module, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        store.run("a", {}, work)
    monkeypatch.setattr(module, "write_json", write)
    # What it had is still there for the second attempt.
    assert store.run("a", {}, work).folder and works == [False, True]
    monkeypatch.setattr(module.shutil, "rmtree", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        store.run("b", {}, work)
    monkeypatch.undo()
    stage = store.run("b", {}, work)
    assert stage.was_done and len(works) == 3 and not (stage.folder / "checkpoints").exists()


@pytest.mark.parametrize("bf16", [False, True])
def test_what_a_training_keeps_is_what_is_planned_for(bf16):
    """Bytes a token, layer and channel that autograd keeps of a Llama in SmolLM's proportions, without its head."""
    import torch
    from transformers import AutoModel

    from hf_bitdistill.recipe import train

    shape = {"hidden_size": 144, "intermediate_size": 384, "num_attention_heads": 9, "num_key_value_heads": 3}
    model = AutoModel.from_config(AutoConfig.for_model("llama", num_hidden_layers=3, vocab_size=384, **shape)).train()
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def kept(rows: int) -> int:
        tensors = []
        ids = torch.arange(rows * 64).view(rows, 64) % 384
        with (
            torch.autograd.graph.saved_tensors_hooks(
                lambda tensor: tensors.append(tensor) or tensor, lambda tensor: tensor
            ),
            torch.autocast("cpu", torch.bfloat16, enabled=bf16),
        ):
            output = model(input_ids=ids)
        assert output.last_hidden_state.requires_grad
        storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}
        return sum(size for place, size in storages.items() if place not in weights)

    # (Copies of weights in 16 bits do not grow with the rows.)
    found = (kept(4) - kept(2)) / (2 * 64) / (3 * 144)
    planned = train._KEPT_A_LAYER_BF16 if bf16 else train._KEPT_A_LAYER
    assert 0.6 * planned < found < planned
