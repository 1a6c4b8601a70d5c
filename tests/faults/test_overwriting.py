"""Killed while a model is written over an older one: what is found afterwards is the old model or the new one."""

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from killing import kill_points, number_of_operations, run_and_kill
from transformers import AutoConfig, AutoModelForCausalLM

from hf_bitdistill import pack
from hf_bitdistill.cli.main import main
from hf_bitdistill.files.weight_files import find_weight_files
from hf_bitdistill.runtime import Student
from optimum.bitnet import BitNetModelForCausalLM
from optimum.bitnet.export import export
from students import make_student


@dataclass
class Overwrite:
    """`old` writes a model into a folder, `new` writes another over it."""

    old: Callable[[Path], object]
    new: Callable[[Path], object]


def student(scale=1.0, **options):
    model = make_student(options=options, num_hidden_layers=1)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(scale)
    return model


def command(*arguments):
    assert main(list(map(str, arguments))) == 0


@pytest.fixture(scope="module")
def source(tmp_path_factory, _tiny_backend):
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("source")
    student(0.5).save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(_tiny_backend), pad_token="<pad>")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def cases(source):
    by_row = student(weight_granularity="row")
    plain, packed, other = student(), pack(student()), pack(student(2.0))
    return {
        "save, another granularity": Overwrite(plain.save_pretrained, by_row.save_pretrained),
        "save, shards over one file": Overwrite(
            plain.save_pretrained, lambda folder: by_row.save_pretrained(folder, max_shard_size="20KB")
        ),
        "save, one file over shards": Overwrite(
            lambda folder: plain.save_pretrained(folder, max_shard_size="20KB"), by_row.save_pretrained
        ),
        "save, gathered state": Overwrite(
            by_row.save_pretrained, lambda folder: plain.save_pretrained(folder, state_dict=plain.state_dict())
        ),
        "save packed, other shards": Overwrite(
            lambda folder: packed.save_pretrained(folder, max_shard_size="10KB"),
            lambda folder: other.save_pretrained(folder, max_shard_size="6KB"),
        ),
        "pack": Overwrite(packed.save_pretrained, lambda folder: command("pack", source, folder)),
        "pack over an online student": Overwrite(
            by_row.save_pretrained, lambda folder: command("pack", source, folder, "--max_shard_size", "20KB")
        ),
        "export": Overwrite(packed.save_pretrained, lambda folder: export(str(source), folder)),
        "native class": Overwrite(
            by_row.save_pretrained,
            BitNetModelForCausalLM.from_pretrained(source, export=True).save_pretrained,
        ),
    }


NAMES = [
    "save, another granularity",
    "save, shards over one file",
    "save, one file over shards",
    "save, gathered state",
    "save packed, other shards",
    "pack",
    "pack over an online student",
    "export",
    "native class",
]


def what_loads(folder):
    """The weights and what they mean, as both loaders read them, which must agree."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    options = model.config.quantization_config
    config = AutoConfig.from_pretrained(folder)
    native = Student(config, find_weight_files(folder, config))
    packed = model if options.quantization_mode == "offline" else pack(model, table_bits=32)
    expected, tensors = packed.state_dict(), dict(native.offline_tensors())
    assert tensors and all(torch.equal(value, expected[name]) for name, value in tensors.items())
    return options.to_dict(), model.state_dict()


def same(one, other):
    return (
        one[0] == other[0]
        and one[1].keys() == other[1].keys()
        and all(torch.equal(value, other[1][name]) for name, value in one[1].items())
    )


def snapshot(folder):
    """Files that are no part of the model."""
    return {name: (folder / name).read_text() for name in ("README.md", "checkpoint-7/trainer_state.json")}


@pytest.mark.parametrize("kills", [3, pytest.param(None, id="every operation", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", NAMES)
def test_the_old_model_or_the_new_one(name, kills, cases, tmp_path, native_decoder):
    case = cases[name]
    old, new, folder = tmp_path / "old", tmp_path / "new", tmp_path / "model"
    case.old(old)
    (old / "README.md").write_text("mine")
    (old / "checkpoint-7").mkdir()
    (old / "checkpoint-7" / "trainer_state.json").write_text("{}")
    case.new(new)
    before, after, others = what_loads(old), what_loads(new), snapshot(old)
    assert not same(before, after)

    def fresh():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(old, folder)

    fresh()
    operations = number_of_operations(lambda: case.new(folder), folder)
    assert same(what_loads(folder), after)
    found = {"old": 0, "new": 0}
    generator = random.Random(name)
    for point in kill_points(operations, kills or operations, seed=generator.randrange(1000)):
        fresh()
        outcome = run_and_kill(lambda: case.new(folder), folder, at_operation=point)
        assert outcome.killed, outcome.output
        loaded = what_loads(folder)
        state = next((which for which, model in (("old", before), ("new", after)) if same(loaded, model)), None)
        assert state, f"killed at operation {point}: neither the old model nor the new one"
        found[state] += 1
        assert snapshot(folder) == others
        if kills is None or point == operations - 1:
            case.new(folder)
            assert same(what_loads(folder), after)
            assert snapshot(folder) == others
            assert not [path.name for path in folder.rglob("*") if ".tmp" in path.name]
    print(f"{name}: killed at {sum(found.values())} of {operations} operations, found {found}")
    assert kills or (found["old"] and found["new"])
