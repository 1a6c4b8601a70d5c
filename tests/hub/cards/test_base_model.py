"""Which model a student is of, as the Hub knows it."""

import json
from pathlib import Path

import pytest
from hub_double import Fault
from huggingface_hub import hf_hub_download

from hf_bitdistill.hub.cards import base_model_id as module
from hf_bitdistill.hub.cards.base_model_id import base_model_id, exact_model_id, hub_model_id, license_of


def test_hub_ids(tmp_path):
    assert hub_model_id("org/model") == "org/model" and hub_model_id("gpt2") == "gpt2"
    for name in (None, "", str(tmp_path), "a/b/c", "with space/x", "/data/model", "./model", "../model", "rows.jsonl"):
        assert hub_model_id(name) is None
    # A `Path` is a folder wherever it is looked at from.
    assert hub_model_id(Path("org/model")) is None and base_model_id(Path("org/model")) is None


@pytest.fixture
def folder(tmp_path):
    def make(name, card=None, named=None):
        place = tmp_path / name
        place.mkdir(parents=True)
        (place / "config.json").write_text(
            json.dumps({"model_type": "llama", **({"_name_or_path": named} if named else {})})
        )
        if card:
            (place / "README.md").write_text(f"---\nbase_model: {card}\n---\ntext\n")
        return str(place)

    return make


def test_the_base_model_of_a_folder(folder, tmp_path):
    assert base_model_id("org/model") == "org/model" and base_model_id(None) is None
    named = folder("named", named="org/model")
    assert base_model_id(named) == "org/model" and exact_model_id(named) is None
    assert base_model_id(folder("described", card="org/other", named=named)) == "org/other"
    assert base_model_id(folder("farther", named=named)) == "org/model"
    snapshot = folder("hub/models--org--model.v2/snapshots/0123")
    assert base_model_id(snapshot) == exact_model_id(snapshot) == "org/model.v2"
    assert base_model_id(folder("copied", card=snapshot)) == "org/model.v2"
    # A single name is a folder of another machine; folders that name each other lead nowhere; a damaged file says nothing.
    assert base_model_id(folder("single", named="student")) is None
    assert base_model_id(folder("circle", named=str(tmp_path / "circle"))) is None
    (tmp_path / "circle" / "config.json").write_text("{")
    (tmp_path / "circle" / "README.md").write_text("---\nbase_model: [\n---\n")
    assert base_model_id(str(tmp_path / "circle")) is None


def test_the_licence_of_a_base_model(folder, tmp_path):
    place = folder("base")
    assert license_of(None) is None and license_of("org/model") is None and license_of(place) is None
    (tmp_path / "base" / "README.md").write_text("---\nlicense: apache-2.0\n---\ntext\n")
    assert license_of(place) == "apache-2.0"
    (tmp_path / "base" / "README.md").write_text("---\nlicense: [\n---\n")
    assert license_of(place) is None


@pytest.fixture
def base(hub):
    """The id of a base model on the Hub, with a licence; nothing is known of it yet."""
    module._license_on_the_hub.cache_clear()
    hub.create("org/base")
    hub.put("org/base", {"README.md": b"---\nlicense: apache-2.0\n---\ntext\n"})
    yield "org/base"
    module._license_on_the_hub.cache_clear()


def test_the_licence_of_a_base_model_on_the_hub(hub, base, folder, offline):
    assert license_of(base) == "apache-2.0"
    count = len(hub.requests)
    assert license_of(base) == "apache-2.0" and len(hub.requests) == count
    # A folder that names it, and another one that names that.
    assert license_of(folder("student", named=base)) == "apache-2.0"
    assert license_of(folder("further", named=str(folder("again", named=base)))) == "apache-2.0"
    # Off the net: from the cache, or not at all.
    hf_hub_download(base, "README.md")
    count = len(hub.requests)
    module._license_on_the_hub.cache_clear()
    offline()
    assert license_of(base) == "apache-2.0" and license_of("org/other") is None and len(hub.requests) == count


def test_no_licence_is_worth_an_error_or_a_second_try(hub, base):
    assert license_of("org/nowhere") is None
    hub.create("org/private", private=True)
    assert license_of("org/private") is None
    for fault in (Fault("GET", "README.md", 503, times=9), Fault("GET", "README.md", None, times=9)):
        hub.faults[:] = [fault]
        module._license_on_the_hub.cache_clear()
        assert license_of(base) is None and fault.times == 8  # it is asked once
