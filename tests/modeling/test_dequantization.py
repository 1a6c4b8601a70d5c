"""`model.dequantize()`, and the number of weights before and after."""

import copy
import pickle

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from adapter_helpers import draw
from architectures import random_tokens, tiny_model
from hf_bitdistill import BitNetConfig, pack, quantize_head
from hf_bitdistill.modeling.surgery import SurgeryError
from hf_bitdistill.nn import SubNormLinear, TernaryLinear
from students import assert_close, make_student


def packed_student(model_type="llama", options=None, table_bits=32, **overrides):
    """A packed student, and the same with activations that are not rounded, which is what it becomes when it is dequantised."""
    dtype = None if table_bits == 32 else "float32"
    make = lambda **more: pack(  # noqa: E731
        make_student(model_type, options={**(options or {}), **more}, **overrides), dtype=dtype, table_bits=table_bits
    )
    return make(), make(activation_bits=None)


@pytest.mark.parametrize(
    "model_type, options",
    [
        ("llama", {}),
        ("qwen3", {"sub_norm": "all", "weight_granularity": "group", "group_size": 64}),
        ("gpt2", {"weight_granularity": "row"}),
        ("mixtral", {}),
    ],
)
@torch.no_grad()
def test_it_is_the_student_without_the_rounding_of_activations(model_type, options):
    packed, expected = packed_student(model_type, options)
    floats = packed.dequantize()
    assert floats is packed and not any(isinstance(module, TernaryLinear) for module in floats.modules())
    assert_close(floats(random_tokens()).logits, expected(random_tokens()).logits, 1e-5)
    assert getattr(floats.config, "quantization_config", None) is None and not floats.is_quantized
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in floats.parameters())


def test_with_sub_norms_it_trains_but_is_not_saved(tmp_path):
    packed, _ = packed_student()
    floats = packed.dequantize(torch.bfloat16)
    assert isinstance(floats.model.layers[0].mlp.down_proj, SubNormLinear)
    assert type(floats.model.layers[0].mlp.up_proj) is nn.Linear
    tokens = random_tokens()
    output = floats(tokens, labels=tokens)
    output.loss.backward()
    assert output.logits.dtype == torch.bfloat16 and floats.model.layers[0].mlp.down_proj.weight.grad.abs().sum() > 0
    for save in (floats.save_pretrained, floats.push_to_hub, copy.deepcopy(floats).save_pretrained):
        with pytest.raises(ValueError, match=r"float model with SubLNs .*o_proj.* would load without them"):
            save(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@torch.no_grad()
def test_without_sub_norms_it_is_an_ordinary_model(tmp_path):
    packed, _ = packed_student(options={"sub_norm": "none"})
    floats = packed.dequantize()
    floats.save_pretrained(tmp_path)
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(again(random_tokens()).logits, floats(random_tokens()).logits)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bits, stored", [(8, True), (4, False)])
@torch.no_grad()
def test_tables_of_few_bits(tmp_path, bits, stored, tied):
    packed, _ = packed_student(
        options={"sub_norm": "none"}, table_bits=bits if stored else 32, tie_word_embeddings=tied
    )
    if not stored:
        quantize_head(packed, bits)
    rows = packed.get_input_embeddings()(torch.arange(96))
    floats = packed.dequantize()
    embedding, head = floats.get_input_embeddings(), floats.get_output_embeddings()
    assert torch.equal(embedding.weight, rows) and (head.weight is embedding.weight) == tied
    floats.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(random_tokens()).logits, floats(random_tokens()).logits)
    assert (again.lm_head.weight is again.model.embed_tokens.weight) == tied


def test_a_scaled_embedding_of_few_bits_is_refused():
    packed, _ = packed_student("gemma2", table_bits=8)
    with pytest.raises(SurgeryError, match="head_bits=16"):
        packed.dequantize()
    assert any(isinstance(module, TernaryLinear) for module in packed.modules())  # as it was


@torch.no_grad()
def test_a_student_with_an_adapter_is_refused():
    """However it was injected; and then it still is what it was."""
    packed, _ = packed_student()
    adapted = get_peft_model(packed, LoraConfig(target_modules=["up_proj", "o_proj"]))
    draw(adapted)
    before = adapted(random_tokens()).logits
    for model in (adapted, adapted.get_base_model()):
        with pytest.raises(
            SurgeryError, match=r"model\.layers\.0\.self_attn\.o_proj carries an adapter .*merge_adapter"
        ):
            model.dequantize()
    assert torch.equal(adapted(random_tokens()).logits, before)
    floats = adapted.unload().dequantize()
    assert not any(isinstance(module, TernaryLinear) for module in floats.modules())


@pytest.mark.parametrize("model_type", ["llama", "phi", "mixtral"])
def test_the_number_of_weights_is_that_before_packing(tmp_path, model_type):
    student = make_student(model_type)
    norms = sum(parameter.numel() for name, parameter in student.named_parameters() if "rms_norm" in name)
    size = tiny_model(model_type).num_parameters() + norms
    body = tiny_model(model_type).num_parameters(exclude_embeddings=True) + norms
    assert student.num_parameters() == size
    for table_bits in (16, 8, 4):
        packed = pack(student, table_bits=table_bits)
        packed.save_pretrained(tmp_path / str(table_bits))
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / str(table_bits))
        for model in (packed, loaded, pickle.loads(pickle.dumps(packed))):
            assert model.num_parameters() == size, table_bits
            assert model.num_parameters(exclude_embeddings=True) == body
            assert model.num_parameters(only_trainable=True) == 0
    assert quantize_head(pack(student), 4).num_parameters() == size
    assert pack(student).dequantize().num_parameters() == size
    assert student.num_parameters(only_trainable=True) == size


def test_the_number_of_weights_of_a_real_model(shared_dir):
    base = shared_dir / "models/stories260K"
    size = AutoModelForCausalLM.from_pretrained(base).num_parameters()
    student = AutoModelForCausalLM.from_pretrained(base, quantization_config=BitNetConfig(sub_norm="none"))
    assert pack(student).num_parameters() == size > 250_000
