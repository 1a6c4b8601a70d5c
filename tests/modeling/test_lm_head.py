"""Embedding tables and output heads of 8 and 4 bits in packed models."""

import copy

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from architectures import ARCHITECTURES, HYBRID, random_tokens, tiny_model
from hf_bitdistill import BitNetConfig, SurgeryError, apply_bitnet, pack, quantize_head
from hf_bitdistill.nn import QuantizedEmbedding, QuantizedHead
from hf_bitdistill.ops import binding


def logits(model, tokens):
    with torch.no_grad():
        return model.eval()(tokens).logits


def relative_error(got, expected):
    return float((got - expected).norm() / expected.norm())


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_any_architecture(model_type):
    model, tokens = pack(apply_bitnet(tiny_model(model_type)), inplace=True), random_tokens()
    expected = logits(model, tokens)
    assert quantize_head(model, 8) is model
    assert isinstance(model.get_input_embeddings(), QuantizedEmbedding)
    assert isinstance(model.get_output_embeddings(), QuantizedHead)
    # The table's own error, and int8 activations that it rounds the other way, of which a linear attention has more.
    assert relative_error(logits(model, tokens), expected) < (0.08 if model_type in HYBRID else 0.05)
    assert model.generate(tokens, max_new_tokens=3, do_sample=False, eos_token_id=None).shape == (2, 14)


@pytest.mark.parametrize(("bits", "error"), [(8, 0.05), (4, 0.35)])
@pytest.mark.parametrize("tied", [True, False])
def test_tied_and_untied_from_a_checkpoint(bits, error, tied, tmp_path):
    student = apply_bitnet(tiny_model("llama", tie_word_embeddings=tied), BitNetConfig(head_bits=bits))
    packed = pack(student)  # keeps the float tables, so that it can be saved
    packed.save_pretrained(tmp_path)
    model, tokens = AutoModelForCausalLM.from_pretrained(tmp_path), random_tokens()
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert (embedding.table is head.table) == tied
    assert embedding.table.bits == bits
    assert not any("embed_tokens" in name or "lm_head" in name for name, _ in model.named_parameters())
    floats = (1 if tied else 2) * 96 * 48 * 4
    assert model.get_memory_footprint() < packed.get_memory_footprint() - floats / 2
    assert relative_error(logits(model, tokens), logits(packed, tokens)) < error
    # The same as quantising in memory, and the same without the native library.
    assert torch.equal(logits(quantize_head(copy.deepcopy(packed), bits), tokens), logits(model, tokens))
    model.tie_weights()
    assert torch.equal(logits(copy.deepcopy(model), tokens), logits(model, tokens))


@pytest.mark.parametrize("bits", [8, 4])
def test_without_the_native_library(bits, monkeypatch):
    model, tokens = quantize_head(pack(apply_bitnet(tiny_model("qwen3"))), bits), random_tokens()
    expected = logits(model, tokens)
    monkeypatch.setattr(binding, "library", lambda: None)
    torch.testing.assert_close(logits(model, tokens), expected, rtol=1e-4, atol=1e-5)


def test_bits_of_a_checkpoint_can_be_overridden(tmp_path):
    pack(apply_bitnet(tiny_model("llama"))).save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.quantization_config["head_bits"] == 16
    config.quantization_config["head_bits"] = 4
    model = AutoModelForCausalLM.from_pretrained(tmp_path, config=config)
    assert model.get_input_embeddings().table.bits == 4


def test_saving_is_refused(tmp_path):
    model = quantize_head(pack(apply_bitnet(tiny_model("llama"))), 8)
    with pytest.raises(ValueError, match=r"float tables.*head_bits=16"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_checkpoint_from_before_the_option_loads(tmp_path):
    config = BitNetConfig().to_dict()
    del config["head_bits"]
    assert BitNetConfig.from_dict(config).head_bits == 16


def test_bfloat16_and_scaled_embeddings(tmp_path):
    """Gemma's embedding layer multiplies its rows."""
    pack(apply_bitnet(tiny_model("gemma3_text"), BitNetConfig(head_bits=8))).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    tokens = random_tokens()
    assert model.get_input_embeddings()(tokens).dtype == torch.bfloat16
    full = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert relative_error(logits(model, tokens).float(), logits(full, tokens)) < 0.1


def test_sequence_classification_quantises_the_embedding_alone(tmp_path):
    tiny_model("qwen3").save_pretrained(tmp_path / "full")
    student = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "full", num_labels=3, quantization_config=BitNetConfig(head_bits=8)
    )
    packed = pack(student)
    packed.save_pretrained(tmp_path / "packed")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "packed")
    assert isinstance(model.get_input_embeddings(), QuantizedEmbedding) and type(model.score) is torch.nn.Linear
    torch.testing.assert_close(logits(model, random_tokens()), logits(packed, random_tokens()), rtol=0.1, atol=0.1)


def test_what_cannot_be_quantised_is_refused():
    student = apply_bitnet(tiny_model("llama"))
    with pytest.raises(SurgeryError, match="pack it first"):
        quantize_head(student)
    with pytest.raises(SurgeryError, match="not a BitNet student"):
        quantize_head(tiny_model("llama"))
    packed = pack(student)
    with pytest.raises(ValueError, match="8 or 4"):
        quantize_head(packed, 3)
    broken = copy.deepcopy(packed)
    broken.model.embed_tokens.weight[3, 3] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        quantize_head(broken)

    class Shifted(torch.nn.Embedding):
        def forward(self, input):
            return super().forward(input) + 1

    odd = copy.deepcopy(packed)
    odd.set_input_embeddings(Shifted(96, 48))
    with pytest.raises(SurgeryError, match="Shifted does more"):
        quantize_head(odd)
    with pytest.raises(SurgeryError, match="already"):
        quantize_head(quantize_head(packed))


def test_online_students_ignore_the_option(tmp_path):
    student = apply_bitnet(tiny_model("llama"), BitNetConfig(head_bits=4))
    student.save_pretrained(tmp_path)
    resumed = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(resumed.get_input_embeddings()) is torch.nn.Embedding and resumed.lm_head.weight.requires_grad


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("tied", [True, False])
def test_quantised_tables_are_not_resized(bits, tied):
    model = quantize_head(pack(apply_bitnet(tiny_model("llama", tie_word_embeddings=tied))), bits)
    tokens = random_tokens()
    expected = logits(model, tokens)
    for size in (97, 64, 96, None):
        with pytest.raises(AttributeError, match=f"table of {bits}-bit integers.*head_bits=16"):
            model.resize_token_embeddings(size)
    assert model.config.vocab_size == 96
    model.tie_weights()
    assert not hasattr(model.get_input_embeddings(), "weight") and not hasattr(model.get_output_embeddings(), "weight")
    assert torch.equal(logits(model, tokens), expected)
    # Its own modules can be put back; one of floats in place of the integers is taken as it is.
    model.set_input_embeddings(model.get_input_embeddings())
    model.set_output_embeddings(model.get_output_embeddings())
    assert torch.equal(logits(model, tokens), expected)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_float_tables_of_a_student_are_resized(packed, tied, tmp_path):
    model = apply_bitnet(tiny_model("llama", tie_word_embeddings=tied))
    model = pack(model) if packed else model
    tokens = random_tokens()
    expected = logits(model, tokens)
    model.resize_token_embeddings(101)
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    torch.testing.assert_close(logits(model, tokens)[..., :96], expected)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.config.vocab_size == 101
    assert torch.equal(logits(again, tokens + 5), logits(model, tokens + 5))
    if packed:
        assert relative_error(logits(quantize_head(again, 8), tokens), logits(model, tokens)) < 0.05
