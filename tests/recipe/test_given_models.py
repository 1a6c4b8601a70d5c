"""Which of the models that are given the student is made of, which one teaches, and what is refused before any training."""

import json

import pytest

from hf_bitdistill.recipe import RecipeError, RecipeSettings
from hf_bitdistill.recipe.given_models import read_given
from tiny_recipe import make_model, put_on_hub


def given(model=None, teacher=None, **more):
    return read_given(RecipeSettings(model=model, teacher=teacher, dataset="d", output_dir="o", **more))


def make_adapter(folder, base):
    """What tells an adapter and its model."""
    folder.mkdir()
    named = {} if base is None else {"base_model_name_or_path": str(base)}
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "task_type": "CAUSAL_LM", **named}))
    return str(folder)


@pytest.fixture
def make(tmp_path, tiny_llama_config, tiny_tokenizer):
    """`make(name, **shape)`: a model of that shape with the same tokenizer."""

    def make(name, **shape):
        tiny_llama_config.update(shape)
        return str(make_model(tmp_path / name, tiny_llama_config, tiny_tokenizer))

    return make


def test_a_teacher_of_the_models_shape(model, make):
    # Neither rows of padding in the vocabulary nor a longer context is another shape.
    tuned = make("tuned", vocab_size=390, max_position_embeddings=64)
    found = given(str(model), tuned)
    assert (found.base, found.teacher, found.adapted, found.differs) == (str(model), tuned, None, "")
    # The student is made of the teacher; with plain text of the model as it came. Both must be able to read an example.
    assert found.config.vocab_size == 390 and found.context.max_position_embeddings == 64
    found = given(str(model), tuned, corpus="c")
    assert found.config.vocab_size == 384 and found.context.max_position_embeddings == 64
    # A teacher alone is the model, too.
    alone = given(teacher=tuned)
    assert (alone.base, alone.teacher, alone.differs) == (tuned, tuned, "")


def test_a_teacher_of_another_shape(model, make):
    larger = make("larger", hidden_size=48, num_hidden_layers=3)
    found = given(str(model), larger)
    assert found.differs.startswith("hidden_size 48, not 32, num_hidden_layers 3, not 2")
    assert found.config.hidden_size == 32 and found.like_teacher == larger


def test_adapters(model, make, tmp_path):
    adapter = make_adapter(tmp_path / "adapter", model)
    for found in (given(adapter), given(teacher=adapter), given(adapter, adapter), given(str(model), adapter)):
        assert (found.base, found.teacher, found.adapted, found.differs) == (str(model), adapter, str(model), "")
    # On the Hub as in a folder.
    on_hub = put_on_hub(tmp_path / "adapter", "someone/adapter")
    found = given(on_hub)
    assert (found.base, found.teacher, found.adapted) == (str(model), on_hub, str(model))
    # Of another model than the one that is given.
    larger = make("larger", hidden_size=48)
    found = given(str(model), make_adapter(tmp_path / "of larger", larger))
    assert (found.base, found.adapted) == (str(model), larger) and "hidden_size 48, not 32" in found.differs


def test_adapters_are_refused_by_name(model, make, tmp_path, tiny_tokenizer):
    adapter = make_adapter(tmp_path / "adapter", model)
    with pytest.raises(RecipeError, match=r"adapter is a PEFT adapter, which would be the teacher: give the model"):
        given(adapter, str(model))
    with pytest.raises(RecipeError, match=r"lora, teacher_epochs: .*adapter is a PEFT adapter"):
        given(adapter, lora=True, teacher_epochs=1.0)
    with pytest.raises(RecipeError, match=r"of nobody is a PEFT adapter that does not say of which model"):
        given(make_adapter(tmp_path / "of nobody", None))
    with pytest.raises(RecipeError, match=r"of lost is a PEFT adapter of /no/such/model: there is no model folder"):
        given(str(model), make_adapter(tmp_path / "of lost", "/no/such/model"))
    # What holds for a whole teacher holds for the model of an adapter.
    tiny_tokenizer.add_tokens(["robots"])
    other = make("other", vocab_size=400)
    with pytest.raises(ValueError, match="different tokenizers"):
        given(str(model), make_adapter(tmp_path / "of other", other))
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(
        json.dumps({**config, "quantization_config": {"quant_method": "x"}})
    )
    with pytest.raises(RecipeError, match="other is quantised already"):
        given(str(model), str(tmp_path / "of other"))


def test_what_is_neither_here_nor_on_the_hub(model):
    with pytest.raises(FileNotFoundError, match="neither a folder here nor a model on the Hub"):
        given("someone/nothing")
    with pytest.raises(FileNotFoundError, match="there is no model folder"):
        given(str(model), "./nothing")
