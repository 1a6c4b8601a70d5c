"""What a card knows of its base model, and the card of a student of which nothing else is known."""

import json

import pytest
from huggingface_hub import ModelCard

from hf_bitdistill.hub.card import base_model_id, exact_model_id, hub_model_id, plain_card
from students import make_student


def test_hub_ids(tmp_path):
    assert hub_model_id("org/model") == "org/model" and hub_model_id("gpt2") == "gpt2"
    for name in (None, "", str(tmp_path), "a/b/c", "with space/x", "/data/model"):
        assert hub_model_id(name) is None


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


@pytest.mark.parametrize("push_format", ["packed", "online", "both"])
def test_the_plain_card(push_format):
    student = make_student()
    student.config.architectures = ["LlamaForCausalLM"]
    card = ModelCard(plain_card("me/student", student.config, "org/model", push_format, ["mine"]))
    assert (card.data.base_model, card.data.base_model_relation) == ("org/model", "quantized")
    assert (
        card.data.tags == ["bitdistill", "bitnet", "ternary", "mine"] and card.data.pipeline_tag == "text-generation"
    )
    assert ('from_pretrained("me/student")' in card.content) == (push_format != "online")
    assert ('from_pretrained("me/student", subfolder="online")' in card.content) == (push_format != "packed")
    del student.config.quantization_config
    card = ModelCard(plain_card("me/student", student.config, "org/model"))
    assert "ternary" not in card.content and card.data.base_model_relation == "finetune"
