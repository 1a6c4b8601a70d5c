"""Descriptions against transformers: a torch decoder that knows nothing but the description computes the same logits."""

import pytest
import torch

from architectures import ARCHITECTURES, random_tokens
from hf_bitdistill.architectures import NATIVE
from hf_bitdistill.runtime import StudentWeights, UnsupportedModelError, describe
from reference_decoder import ReferenceDecoder
from students import VARIANTS, assert_close, make_student, open_student


@pytest.mark.parametrize("model_type, options", VARIANTS)
@torch.no_grad()
def test_the_description_is_what_transformers_computes(saved, model_type, options):
    student, folder = saved(model_type, **options)
    files = open_student(folder)
    weights = StudentWeights(files, 32)
    reference = ReferenceDecoder(
        describe(files.model), weights, lambda name: files.model.get_submodule(name).out_features
    )
    tokens = random_tokens(1, 23)
    assert_close(reference.logits(tokens[0]), student(tokens).logits[0])


@pytest.mark.parametrize("model_type", sorted(set(ARCHITECTURES) - set(NATIVE)))
def test_other_architectures_are_refused(model_type):
    with pytest.raises(UnsupportedModelError, match=f"architecture '{model_type}'"):
        describe(make_student(model_type))


ROPE = {"rope_theta": 1e4, "factor": 2.0}


@pytest.mark.parametrize(
    "message, model_type, options, bitnet",
    [
        ("rotary embedding of type 'dynamic'", "llama", {"rope_parameters": {"rope_type": "dynamic", **ROPE}}, {}),
        ("bidirectional", "gemma3_text", {"use_bidirectional_attention": True}, {}),
        ("activation 'tanh'", "llama", {"hidden_act": "tanh"}, {}),
        ("chunked_attention", "qwen3", {"layer_types": ["full_attention", "chunked_attention"]}, {}),
        ("activation_bits=None", "llama", {}, {"activation_bits": None}),
    ],
)
def test_what_is_not_understood_is_refused(message, model_type, options, bitnet):
    with pytest.raises(UnsupportedModelError, match=message):
        describe(make_student(model_type, options=bitnet, **options))


def test_experts_in_full_precision_are_refused():
    student = make_student("qwen3_moe", options={"modules_to_not_convert": ["mlp.experts"]})
    with pytest.raises(UnsupportedModelError, match=r"layers\.0\.mlp\.experts in full precision"):
        describe(student)


def test_a_projection_of_another_kind_is_refused():
    student = make_student(options={"modules_to_not_convert": ["layers.0"]})
    student.model.layers[0].self_attn.q_proj = torch.nn.Bilinear(4, 4, 4)
    with pytest.raises(UnsupportedModelError, match=r"layers.0.self_attn.q_proj is no linear layer \(Bilinear\)"):
        describe(student)


def test_a_tensor_without_a_place_is_refused():
    student = make_student()
    student.model.layers[1].extra = torch.nn.Linear(4, 4)
    with pytest.raises(UnsupportedModelError, match=r"layers.1.extra.weight' has no place"):
        describe(student)
