"""Adapters made a part of ternary weights: refused, or rounded again on request, with the loss said."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from adapter_helpers import draw
from architectures import random_tokens
from hf_bitdistill import merge_adapter, pack
from hf_bitdistill.adapters.lora import TernaryLora
from hf_bitdistill.nn import BitLinear, TernaryLinear
from students import make_student


@torch.no_grad()
def logits(model):
    return model(random_tokens(2, 9)).logits


def students(**options):
    online = make_student(**options)
    return {"online": online, "packed": pack(online, table_bits=32)}


@pytest.mark.parametrize("kind", ["online", "packed"])
def test_merging_is_refused(with_lora, kind):
    adapted = with_lora(students()[kind])
    before = logits(adapted)
    for merge in (
        adapted.merge_and_unload,
        lambda: adapted.merge_and_unload(safe_merge=True),
        adapted.merge_adapter,
        lambda: merge_adapter(adapted),
    ):
        with pytest.raises(ValueError, match="requantize=True"):
            merge()
    assert torch.equal(logits(adapted), before)
    with pytest.raises(TypeError, match="takes a PeftModel"):
        merge_adapter(adapted.get_base_model(), requantize=True)


@pytest.mark.parametrize("kind", ["online", "packed"])
def test_a_new_adapter_merges_without_loss(kind):
    student = students()[kind]
    adapted = get_peft_model(copy.deepcopy(student), LoraConfig(target_modules="all-linear"))
    merged, report = merge_adapter(adapted, requantize=True)
    assert report.changed_codes == report.adapter_size == report.lost == 0 and report.relative_error < 1e-6
    torch.testing.assert_close(logits(merged.eval()), logits(student), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_granularity": "row", "sub_norm": "all"},
        {"weight_granularity": "group", "group_size": 64},
    ],
)
@torch.no_grad()
def test_what_is_lost_is_said(with_lora, caplog, tmp_path, options):
    results = {}
    for kind, student in students(options=options).items():
        adapted = with_lora(student, r=8, lora_alpha=64)
        wanted, before = {}, {}
        for name, layer in adapted.get_base_model().named_modules():
            if isinstance(layer, TernaryLora):
                before[name] = layer.base_layer.dequantize()
                wanted[name] = before[name] + layer.get_delta_weight("default")
        merged, report = merge_adapter(adapted, requantize=True)
        assert f"{report.relative_error:.1%} away from base + adapter" in caplog.text
        after = {name: merged.get_submodule(name).dequantize() for name in wanted}

        def size(of):
            return sum(tensor.double().square().sum() for tensor in of.values()) ** 0.5

        lost = size({name: after[name] - wanted[name] for name in wanted})
        change = size({name: before[name] - wanted[name] for name in wanted})
        assert abs(report.relative_error - lost / size(wanted)) < 1e-5
        assert abs(report.adapter_size - change / size(wanted)) < 1e-5
        assert abs(report.lost - lost / change) < 1e-5
        assert report.relative_error > 0 and 0 < report.lost < 1 and 0 < report.changed_codes < 1
        results[kind] = merged
    online, packed = results.values()
    assert all(isinstance(online.get_submodule(name), BitLinear) for name in wanted)
    assert all(isinstance(packed.get_submodule(name), TernaryLinear) for name in wanted)
    repacked = pack(online, table_bits=32)
    for name in wanted:
        assert torch.equal(repacked.get_submodule(name).weight, packed.get_submodule(name).weight)
    packed.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(packed))


@torch.no_grad()
def test_some_adapters_and_layers_in_full_precision(with_lora):
    student = students(options={"modules_to_not_convert": ["q_proj"]})["packed"]
    adapted = with_lora(student, target_modules=["q_proj", "k_proj"])
    adapted.add_adapter("other", LoraConfig(target_modules=["q_proj"]))
    draw(adapted, "other", 3)
    name = "model.layers.0.self_attn.q_proj"
    layer = adapted.get_base_model().get_submodule(name)
    wanted = layer.base_layer.weight + layer.get_delta_weight("other")
    codes = student.model.layers[0].self_attn.k_proj.weight
    merged, report = merge_adapter(adapted, requantize=True, adapter_names=["other"])
    torch.testing.assert_close(merged.get_submodule(name).weight, wanted)
    assert report.relative_error == 0 and torch.equal(merged.model.layers[0].self_attn.k_proj.weight, codes)
    assert not any(isinstance(module, TernaryLora) for module in merged.modules())


def test_an_adapter_that_is_not_finite(with_lora):
    adapted = with_lora(students()["packed"])
    with torch.no_grad():
        next(p for name, p in adapted.named_parameters() if "lora_B" in name)[0, 0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        merge_adapter(adapted, requantize=True)
