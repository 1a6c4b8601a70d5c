"""Rules of placement: the first that knows a layer decides, and says why."""

import pytest
from torch import nn

from architectures import tiny_model
from hf_bitdistill import BitNetConfig, SurgeryError
from hf_bitdistill.modeling import placement
from hf_bitdistill.modeling.placement import RULES, Decision, explain, find_projections


@pytest.fixture
def said(monkeypatch):
    """What is logged, by level."""
    messages: dict[str, list[str]] = {"info": [], "warning": []}
    for level, found in messages.items():
        monkeypatch.setattr(placement.logger, level, found.append)
    return messages


def reasons(model, **options):
    return {p.name.removeprefix("model.layers."): p.reason for p in find_projections(model, BitNetConfig(**options))}


def test_the_reason_is_that_of_the_first_rule():
    found = reasons(tiny_model("qwen3_5_text"), projections={"0.mlp.up_proj": "output", "in_proj_b": "input"})
    plan = "in its tensor-parallel plan"
    assert found["0.mlp.gate_proj"] == f"colwise {plan}" and found["0.mlp.down_proj"] == f"rowwise {plan}"
    assert found["0.mlp.up_proj"] == "BitNetConfig(projections={'0.mlp.up_proj': ...})"
    # (A gate that somebody names is none.)
    assert found["0.linear_attn.in_proj_b"] == "BitNetConfig(projections={'in_proj_b': ...})"
    assert set(reasons(tiny_model("gpt2")).values()) == {"the record of 'gpt2'"}
    experts = {name: why for name, why in reasons(tiny_model("qwen3_moe")).items() if "experts" in name}
    assert set(experts.values()) == {"a part of an expert"}


def test_the_order_of_rules_is_the_order_of_authority():
    names = [rule.__name__ for rule in RULES]
    assert names.index("_taken_out") < names.index("_told") < names.index("_gate") < names.index("_planned")
    assert names.index("_planned") < names.index("_beside_the_planned") < names.index("_recorded")
    # What is taken out is out, whatever else names it.
    found = reasons(tiny_model("llama"), projections={"up_proj": "output"}, modules_to_not_convert=["0.mlp.up_proj"])
    assert "0.mlp.up_proj" not in found and "1.mlp.up_proj" in found


def test_what_is_kept_is_logged_with_the_reason(said):
    skip = ["layers.1.mlp.up_proj"]
    reasons(tiny_model("qwen3_5_text"), modules_to_not_convert=skip, projections={"0.mlp.gate_proj": None})
    assert not said["warning"] and len(said["info"]) == 1
    message = said["info"][0]
    assert "model.layers.*.mlp.up_proj (modules_to_not_convert names it)" in message
    assert "model.layers.*.mlp.gate_proj (BitNetConfig(projections={'0.mlp.gate_proj': ...}))" in message
    assert "model.layers.*.linear_attn.in_proj_b, model.layers.*.linear_attn.in_proj_a (a gate: " in message
    said["info"].clear()
    reasons(tiny_model("llama"))
    assert said == {"info": [], "warning": []}


def test_what_is_overlooked_is_a_warning(said):
    model = tiny_model("llama")
    model.model.layers[0].extra = nn.Linear(4, 4)
    reasons(model)
    assert "model.layers.*.extra (in no plan and no record). Add them" in said["warning"][0]
    said["warning"].clear()
    reasons(model, modules_to_not_convert=["extra"])
    assert not said["warning"]
    # As it was in the first version: what is named is all.
    reasons(tiny_model("qwen3_5_text"), projections={"o_proj": "output"}, surgery_version=1)
    (message,) = said["warning"]
    assert "mlp.up_proj" in message and "(projections names others, with surgery_version=1)" in message
    assert "in_proj_b" not in message  # a gate all the same


def test_a_refusal_says_why_nothing_was_found():
    model = tiny_model("qwen3_5_text")
    model.config.model_type, model._tp_plan, model.tp_plan = "brand_new", None, None
    with pytest.raises(SurgeryError) as refusal:
        find_projections(model, BitNetConfig())
    assert "model_type 'brand_new'" in str(refusal.value)
    assert "model.layers.*.self_attn.q_proj" in str(refusal.value)
    assert "(in no plan and no record). Say it with" in str(refusal.value)


def test_layers_are_named_by_reason():
    decisions = {
        "h.0.a": Decision(None, "one"),
        "h.0.b": Decision(None, "two"),
        "h.1.a": Decision(None, "one"),
    }
    assert explain(decisions) == "h.*.a (one); h.*.b (two)" and explain({}) == ""
