"""Experts made separate compute what transformers' fused ones do, in each of the forms that these have."""

import pickle

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from architectures import ARCHITECTURES
from hf_bitdistill.nn import Experts
from hf_bitdistill.nn import experts as experts_module
from hf_bitdistill.nn.experts import is_fused_experts


# What is special about each.
FORMS = {
    "mixtral": {},
    "aria_text": {"is_transposed": True},
    "gpt_oss": {"is_transposed": True, "is_concatenated": False, "has_bias": True},
    "nemotron_h": {"has_gate": False},
}
USUAL = {"has_gate": True, "has_bias": False, "is_transposed": False, "is_concatenated": True}


def fused_experts(model_type: str) -> nn.Module:
    options = {
        **ARCHITECTURES["qwen3_moe"], "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4,
        "intermediate_size": 40, "vocab_size": 50, "pad_token_id": 0,
    }  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**options)).eval()
    fused = next(module for module in model.modules() if is_fused_experts(module))
    assert {name: getattr(fused, name) for name in USUAL} == {**USUAL, **FORMS[model_type]}
    for parameter in fused.parameters():
        nn.init.normal_(parameter, std=0.1)
    return fused


def routing(fused: nn.Module, tokens: int = 9):
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(tokens, 48, generator=generator)
    index = torch.stack([torch.randperm(fused.num_experts - 1, generator=generator)[:2] for _ in range(tokens)])
    return hidden, index, torch.rand(tokens, 2, generator=generator)


@pytest.mark.parametrize("model_type", FORMS)
def test_the_same_function(model_type):
    fused = fused_experts(model_type)
    experts = Experts.from_fused(fused)
    hidden, index, weights = routing(fused)
    with torch.no_grad():
        expected = fused(hidden, index, weights)
        torch.testing.assert_close(experts(hidden, index, weights), expected)
        torch.testing.assert_close(experts.train()(hidden, index, weights), expected)
    assert sum(p.numel() for p in experts.parameters()) == sum(p.numel() for p in fused.parameters())
    assert len(experts) == fused.num_experts and not experts[0].down_proj.weight.is_meta


@pytest.mark.parametrize("model_type", FORMS)
def test_pickling(model_type):
    fused = fused_experts(model_type)
    experts = Experts.from_fused(fused)
    again = pickle.loads(pickle.dumps(experts))
    with torch.no_grad():
        assert torch.equal(again(*routing(fused)), experts(*routing(fused)))


def test_an_index_beyond_the_experts_stands_for_none():
    fused = fused_experts("mixtral")
    experts = Experts.from_fused(fused)
    hidden, index, weights = routing(fused)
    with torch.no_grad():
        alone = experts(hidden, index[:, :1], weights[:, :1])
        index[:, 1] = fused.num_experts
        assert torch.equal(experts(hidden, index, weights), alone)


def test_every_expert_has_a_gradient_in_training():
    fused = fused_experts("gpt_oss")
    experts = Experts.from_fused(fused).train()
    hidden, index, weights = routing(fused)
    assert (fused.num_experts - 1) not in index
    experts(hidden, index, weights).sum().backward()
    assert all(parameter.grad is not None for parameter in experts.parameters())
    assert all((parameter.grad == 0).all() for parameter in experts[-1].parameters())
    assert all(parameter.grad.abs().sum() > 0 for parameter in experts[0].parameters())


def test_all_ranks_of_a_distributed_run_call_all_experts(monkeypatch):
    fused = fused_experts("mixtral")
    experts, called = Experts.from_fused(fused), []
    for expert in experts:
        expert.register_forward_hook(lambda expert, args, output: called.append(len(args[0])))
    hidden, index, weights = routing(fused)
    with torch.no_grad():
        experts(hidden, index, weights)
        assert len(called) < fused.num_experts
        monkeypatch.setattr(experts_module, "_is_distributed", lambda: True)
        called.clear()
        experts(hidden, index, weights)
    assert len(called) == fused.num_experts and sum(called) == index.numel() and 0 in called


def test_frozen_experts_stay_frozen():
    fused = fused_experts("mixtral").requires_grad_(False)
    assert not any(parameter.requires_grad for parameter in Experts.from_fused(fused).parameters())


def test_experts_with_other_tensors_are_of_another_kind():
    fused = fused_experts("mixtral")
    fused.post_expert_norm = nn.LayerNorm(48)
    assert not is_fused_experts(fused)
