"""Surgery on every architecture: what is replaced, where SubLN goes, and that nothing else changes."""

import json
import re
import weakref

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from architectures import ARCHITECTURES, HYBRID, MIXTURES, random_tokens, tiny_config, tiny_model
from hf_bitdistill import BitNetConfig, SurgeryError, apply_bitnet, pack
from hf_bitdistill.modeling import placement, surgery
from hf_bitdistill.modeling.surgery import find_projections, is_named, ternary_share
from hf_bitdistill.nn import BitLinear, SubLN, full_precision


# Per decoder layer: names of the projections, outputs (those with a SubLN) last.
EXPECTED = {
    "llama": (["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"], ["self_attn.o_proj", "mlp.down_proj"]),
    "phi": (["q_proj", "k_proj", "v_proj", "fc1"], ["self_attn.dense", "mlp.fc2"]),
    "phi3": (["qkv_proj", "gate_up_proj"], ["self_attn.o_proj", "mlp.down_proj"]),
    "gpt2": (["attn.c_attn", "mlp.c_fc"], ["attn.c_proj", "mlp.c_proj"]),
    "gpt_neox": (["query_key_value", "dense_h_to_4h"], ["attention.dense", "mlp.dense_4h_to_h"]),
    "opt": (["q_proj", "k_proj", "v_proj", "fc1"], ["self_attn.out_proj", "fc2"]),
    "falcon": (["query_key_value", "dense_h_to_4h"], ["self_attention.dense", "mlp.dense_4h_to_h"]),
}


@pytest.mark.parametrize("model_type", sorted(set(ARCHITECTURES) - HYBRID))
def test_every_projection_is_replaced_and_nothing_else(model_type):
    inputs, outputs = EXPECTED.get(model_type, EXPECTED["llama"])
    if model_type in MIXTURES:
        mlp = [[f"experts.{i}.{name}" for i in range(4)] for name in ("gate_proj", "up_proj", "down_proj")]
        inputs, outputs = [*inputs[:3], *mlp[0], *mlp[1]], [outputs[0], *mlp[2]]
    model = tiny_model(model_type)
    before = sum(parameter.numel() for parameter in model.parameters())
    apply_bitnet(model)
    converted = {name: module for name, module in model.named_modules() if isinstance(module, BitLinear)}
    assert len(converted) == 2 * (len(inputs) + len(outputs))
    for name, module in converted.items():
        is_output = any(name.endswith("." + suffix) for suffix in outputs)
        assert is_output or any(name.endswith("." + suffix) for suffix in inputs)
        # BitNet normalises there itself.
        assert (module.rms_norm is not None) == (is_output and model_type != "bitnet")
    assert model.get_output_embeddings() not in converted.values()
    left = [name for name, module in model.named_modules() if type(module) is nn.Linear]
    assert left == ["lm_head"]
    norms = sum(module.weight.numel() for module in model.modules() if isinstance(module, SubLN))
    assert sum(parameter.numel() for parameter in model.parameters()) == before + norms


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_without_quantisation_and_sub_norm_the_function_is_unchanged(model_type):
    model, tokens = tiny_model(model_type), random_tokens()
    with torch.no_grad():
        expected = model(tokens).logits
        apply_bitnet(model, BitNetConfig(sub_norm="none"))
        with full_precision(model):
            torch.testing.assert_close(model(tokens).logits, expected)
        # ... and with it, it is another function.
        assert not torch.allclose(model(tokens).logits, expected, atol=1e-4)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_students_train_and_generate(model_type):
    model, tokens = apply_bitnet(tiny_model(model_type), BitNetConfig(sub_norm="all")), random_tokens()
    model.train()
    model(input_ids=tokens, labels=tokens).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    assert any(p.grad.abs().sum() > 0 for n, p in model.named_parameters() if "rms_norm" in n)
    model.eval()
    generated = model.generate(tokens[:, :4], max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert generated.shape == (2, 8)


def test_sub_norm_all_and_none():
    norms = {
        choice: sum(
            isinstance(m, SubLN) for m in apply_bitnet(tiny_model("llama"), BitNetConfig(sub_norm=choice)).modules()
        )
        for choice in ("none", "output", "all")
    }
    assert norms == {"none": 0, "output": 4, "all": 14}


def test_gemma_sub_norms_start_at_one():
    model = apply_bitnet(tiny_model("gemma2"))
    assert all((m.weight == 1).all() for m in model.modules() if isinstance(m, SubLN))


def test_projections_of_a_hybrid():
    model = apply_bitnet(tiny_model("qwen3_5_text"))
    converted = {n.removeprefix("model.layers."): m for n, m in model.named_modules() if isinstance(m, BitLinear)}
    linear, full = ["in_proj_qkv", "in_proj_z", "out_proj"], ["q_proj", "k_proj", "v_proj", "o_proj"]
    mlp = [f"{layer}.mlp.{name}" for layer in (0, 1) for name in ("gate_proj", "up_proj", "down_proj")]
    expected = [*(f"0.linear_attn.{name}" for name in linear), *(f"1.self_attn.{name}" for name in full), *mlp]
    assert sorted(converted) == sorted(expected)
    outputs = sorted(name for name, module in converted.items() if module.rms_norm is not None)
    assert outputs == ["0.linear_attn.out_proj", "0.mlp.down_proj", "1.mlp.down_proj", "1.self_attn.o_proj"]


def test_a_plan_that_is_wrong_about_an_output_projection():
    options = {**ARCHITECTURES["qwen3_5_text"], "vocab_size": 96, "mlp_only_layers": [0, 1]}
    model = apply_bitnet(AutoModelForCausalLM.from_config(CONFIG_MAPPING["qwen3_next"](**options)))
    assert model.model.layers[0].linear_attn.out_proj.rms_norm is not None
    assert model.model.layers[0].linear_attn.in_proj_qkvz.rms_norm is None
    assert type(model.model.layers[0].linear_attn.in_proj_ba) is nn.Linear


def test_gates_stay_in_full_precision_unless_named(monkeypatch):
    model, warnings = tiny_model("qwen3_5_text"), []
    monkeypatch.setattr(placement.logger, "warning", warnings.append)
    assert not any("in_proj_b" in projection.name for projection in find_projections(model, BitNetConfig()))
    assert not warnings
    found = {p.name for p in find_projections(model, BitNetConfig())}
    named = {p.name for p in find_projections(model, BitNetConfig(projections={"in_proj_b": "input"}))}
    assert named - found == {"model.layers.0.linear_attn.in_proj_b"} and found < named


def test_modules_to_not_convert():
    config = BitNetConfig(modules_to_not_convert=["layers.0", "mlp.down_proj"])
    names = [projection.name for projection in find_projections(tiny_model("llama"), config)]
    assert names and all(name.startswith("model.layers.1.") and "down_proj" not in name for name in names)
    assert not is_named("model.layers.11.mlp", ["layers.1"])
    with pytest.raises(SurgeryError, match="'no_such_module' matches no module"):
        apply_bitnet(tiny_model("llama"), BitNetConfig(modules_to_not_convert=["no_such_module"]))


def test_modules_without_sub_norm():
    config = BitNetConfig(modules_without_sub_norm=["layers.1.mlp.down_proj", "layers.0.self_attn"])
    model = apply_bitnet(tiny_model("llama"), config)
    assert [name for name, module in model.named_modules() if isinstance(module, SubLN)] == [
        "model.layers.0.mlp.down_proj.rms_norm",
        "model.layers.1.self_attn.o_proj.rms_norm",
    ]
    with pytest.raises(SurgeryError, match="modules_without_sub_norm: 'no_such_module' matches no module"):
        apply_bitnet(tiny_model("llama"), BitNetConfig(modules_without_sub_norm=["no_such_module"]))


def test_an_unknown_architecture_is_refused_and_can_be_told():
    model = tiny_model("llama")
    model.config.model_type, model._tp_plan, model.tp_plan = "brand_new", None, None
    with pytest.raises(SurgeryError, match=r"(?s)brand_new.*model\.layers\.\*\.self_attn\.q_proj.*projections="):
        apply_bitnet(model)
    apply_bitnet(model, BitNetConfig(projections={"q_proj": "input", "o_proj": "output"}))
    converted = [name for name, module in model.named_modules() if isinstance(module, BitLinear)]
    assert len(converted) == 4
    with pytest.raises(SurgeryError, match="'wq' matches no linear layer"):
        apply_bitnet(tiny_model("llama"), BitNetConfig(projections={"wq": "input"}))


def test_experts_of_an_unknown_kind_are_refused_by_name():
    config = CONFIG_MAPPING["llama4_text"](
        hidden_size=16, intermediate_size=16, intermediate_size_mlp=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, vocab_size=20, num_local_experts=2, pad_token_id=0,
    )  # fmt: skip
    with pytest.raises(SurgeryError, match=r"feed_forward\.experts\.gate_up_proj.*modules_to_not_convert"):
        apply_bitnet(AutoModelForCausalLM.from_config(config))
    skip = BitNetConfig(modules_to_not_convert=["feed_forward.experts"])
    partly = apply_bitnet(AutoModelForCausalLM.from_config(config), skip)
    assert sum(isinstance(module, BitLinear) for module in partly.modules()) == 7


def converted_experts(**options) -> list[str]:
    model = apply_bitnet(tiny_model("qwen3_moe"), BitNetConfig(**options))
    return [n for n, module in model.named_modules() if isinstance(module, BitLinear) and ".experts." in n]


def test_experts_can_be_named_one_by_one():
    assert len(converted_experts()) == 2 * 4 * 3
    taken = converted_experts(projections={"experts.1.down_proj": None, "o_proj": "output"})
    assert len(taken) == 2 * (4 * 3 - 1) and not any("experts.1.down_proj" in name for name in taken)
    # As it was in the first version.
    assert converted_experts(projections={"o_proj": "output", "experts.1.down_proj": "output"}, surgery_version=1) == [
        f"model.layers.{layer}.mlp.experts.1.down_proj" for layer in (0, 1)
    ]
    names = converted_experts(modules_to_not_convert=["layers.0", "down_proj", "experts.3"])
    assert names == [f"model.layers.1.mlp.experts.{i}.{part}_proj" for i in range(3) for part in ("gate", "up")]
    with pytest.raises(SurgeryError, match=r"'experts\.4' matches no module"):
        converted_experts(modules_to_not_convert=["experts.4"])
    # Where all stay in full precision, they stay fused.
    skip = BitNetConfig(modules_to_not_convert=["mlp.experts"])
    assert apply_bitnet(tiny_model("qwen3_moe"), skip).model.layers[0].mlp.experts.gate_up_proj.ndim == 3


@pytest.mark.parametrize(
    "model_type,left",
    [
        ("qwen2_moe", {"shared_expert_gate"}),
        ("granitemoe", set()),
        ("phimoe", {"router"}),
        ("afmoe", {"gate"}),
    ],
)
def test_more_mixtures(model_type, left, monkeypatch):
    warnings: list[str] = []
    monkeypatch.setattr(placement.logger, "warning", warnings.append)
    options = {**ARCHITECTURES["qwen3_moe"], "num_local_experts": 4, "pad_token_id": 0, "vocab_size": 50}
    model = apply_bitnet(AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**options)))
    modules = dict(model.named_modules())
    linears = [name for name, m in modules.items() if isinstance(m, nn.Linear) and not isinstance(m, BitLinear)]
    assert {name.rpartition(".")[2] for name in linears} - {"lm_head"} == left
    assert sum(isinstance(module, BitLinear) and ".experts." in name for name, module in modules.items()) >= 12
    assert not warnings


def test_a_mixture_of_which_only_the_experts_are_known_is_refused():
    options = {**ARCHITECTURES["qwen3_moe"], "num_hidden_layers": 8, "pad_token_id": 0, "vocab_size": 50}
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING["jamba"](**options, use_mamba_kernels=False))
    with pytest.raises(SurgeryError, match=r"jamba.*Linear layers looked at: .*self_attn\.q_proj.*projections="):
        apply_bitnet(model)
    apply_bitnet(model, BitNetConfig(projections={"down_proj": "output"}))
    assert any(".experts." in name for name, module in model.named_modules() if isinstance(module, BitLinear))


def test_projections_add_to_what_is_found_and_take_away():
    model = tiny_model("llama")
    found = {p.name: p.role for p in find_projections(model, BitNetConfig())}
    changed = {p.name: p.role for p in find_projections(model, BitNetConfig(projections={"1.mlp.up_proj": "output"}))}
    assert changed == {**found, "model.layers.1.mlp.up_proj": "output"}
    fewer = {p.name for p in find_projections(model, BitNetConfig(projections={"down_proj": None}))}
    assert set(found) - fewer == {f"model.layers.{i}.mlp.down_proj" for i in (0, 1)}
    with pytest.raises(SurgeryError, match="'wq' matches no linear layer"):
        find_projections(model, BitNetConfig(projections={"wq": None}))


_MLA = {
    "q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 12, "qk_rope_head_dim": 4, "v_head_dim": 12, "n_group": 1, "topk_group": 1,
    "n_routed_experts": 4, "first_k_dense_replace": 1, "num_key_value_heads": 4, "head_dim": 4,
}  # fmt: skip


def mla_model(model_type="deepseek_v3"):
    torch.manual_seed(0)
    options = {**ARCHITECTURES["qwen3_moe"], **_MLA, "pad_token_id": 0, "vocab_size": 96}
    return AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**options)).eval()


@pytest.mark.parametrize("model_type", ["deepseek_v3", "deepseek_v2", "youtu"])
def test_latent_attention_is_placed(model_type, monkeypatch):
    warnings: list[str] = []
    monkeypatch.setattr(placement.logger, "warning", warnings.append)
    monkeypatch.setattr(surgery.logger, "warning", warnings.append)
    model = apply_bitnet(mla_model(model_type))
    attention = model.model.layers[1].self_attn
    converted = {name: m.rms_norm is not None for name, m in attention.named_modules() if isinstance(m, BitLinear)}
    inputs = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj")
    assert converted == {**dict.fromkeys(inputs, False), "o_proj": True}
    assert ternary_share(model).share == 1.0 and not warnings
    tokens = random_tokens()
    model.train()(input_ids=tokens, labels=tokens).loss.backward()
    assert all(layer.self_attn.q_a_proj.weight.grad.abs().sum() > 0 for layer in model.model.layers)


def test_a_student_of_the_first_version_loads_as_it_was(tmp_path):
    options = {"o_proj": "output", "down_proj": "output"}
    for name, config in {
        "told": BitNetConfig(projections=options, surgery_version=1),
        "found": BitNetConfig(surgery_version=1),
        "now": BitNetConfig(projections={"gate_proj": None}),
    }.items():
        model = apply_bitnet(mla_model(), config).eval()
        model.save_pretrained(tmp_path / name)
        if name != "now":
            values = json.loads((tmp_path / name / "config.json").read_text())
            del values["quantization_config"]["surgery_version"]  # which it did not have
            (tmp_path / name / "config.json").write_text(json.dumps(values))
        again = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        converted = {n for n, module in model.named_modules() if isinstance(module, BitLinear)}
        assert {n for n, module in again.named_modules() if isinstance(module, BitLinear)} == converted
        suffixes = {n.rpartition(".")[2] for n in converted}
        assert ("q_a_proj" in suffixes) == (name == "now") and ("up_proj" in suffixes) == (name != "told")
        with torch.no_grad():
            assert torch.equal(again(random_tokens()).logits, model(random_tokens()).logits)
        # ... and what is saved of it too.
        again.save_pretrained(tmp_path / "again")
        version = json.loads((tmp_path / "again" / "config.json").read_text())["quantization_config"][
            "surgery_version"
        ]
        assert version == (2 if name == "now" else 1)
        packed = pack(again, table_bits=32)
        packed.save_pretrained(tmp_path / "packed")
        assert len(ternary_share(AutoModelForCausalLM.from_pretrained(tmp_path / "packed")).left) == len(
            ternary_share(model).left
        )


def test_the_share_that_is_ternary(monkeypatch):
    messages: dict[str, list[str]] = {"info": [], "warning": []}
    for level, said in messages.items():
        monkeypatch.setattr(surgery.logger, level, said.append)
    model = apply_bitnet(tiny_model("llama"))
    assert ternary_share(model).share == 1.0 and ternary_share(pack(model)) == ternary_share(model)
    assert messages["warning"] == [] and "100.0%" in messages["info"][0]
    assert ternary_share(tiny_model("llama")).share == 0.0
    # Nothing of an encoder beside it is touched, and that is said.
    partly = tiny_model("llama")
    partly.model.tower = nn.ModuleList(nn.Sequential(nn.Linear(200, 100)) for _ in range(2))
    share = ternary_share(apply_bitnet(partly))
    assert share.left == {"model.tower.0.0": 20000, "model.tower.1.0": 20000}
    assert share.total - share.ternary == 40000 and len(messages["warning"]) == 1
    assert f"{share.share:.1%}" in messages["warning"][0] and "model.tower.*.0" in messages["warning"][0]
    # Who asked for it need not be told; the number says it.
    silent = apply_bitnet(tiny_model("llama"), BitNetConfig(projections={"up_proj": None}))
    assert 0.5 < ternary_share(silent).share < 0.9 and len(messages["warning"]) == 1
    experts = apply_bitnet(tiny_model("qwen3_moe"), BitNetConfig(modules_to_not_convert=["mlp.experts"]))
    assert set(ternary_share(experts).left) == {f"model.layers.{i}.mlp.experts" for i in (0, 1)}


@pytest.mark.parametrize("model_type", ["lfm2_moe", "granitemoehybrid", "jamba"])
def test_experts_come_with_what_a_user_names(model_type):
    options = {
        **ARCHITECTURES["qwen3_moe"], "num_hidden_layers": 8, "num_local_experts": 4, "pad_token_id": 0, "vocab_size": 50,
        "num_dense_layers": 1, "layer_types": ["full_attention"] * 8, "use_mamba_kernels": False,
    }  # fmt: skip
    if model_type == "granitemoehybrid":
        options |= {"layer_types": ["attention"] * 8, "shared_intermediate_size": 40, "mamba_n_heads": 8}
    if model_type == "jamba":
        options.pop("layer_types")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**options))
    with pytest.raises(SurgeryError, match="projections="):
        find_projections(model, BitNetConfig())
    outputs = [
        n for n, m in model.named_modules() if isinstance(m, nn.Linear) and re.search(r"attn\.(o|out)_proj$", n)
    ]
    apply_bitnet(model, BitNetConfig(projections=dict.fromkeys(outputs, "output")))
    experts = [m for n, m in model.named_modules() if ".experts." in n and isinstance(m, nn.Linear)]
    assert experts and all(isinstance(module, BitLinear) for module in experts)


def test_experts_are_in_memory_twice_a_layer_at_a_time(monkeypatch):
    model, alive = tiny_model("mixtral"), []
    fused = [weakref.ref(layer.mlp.experts) for layer in model.model.layers]
    from_fused = surgery.Experts.from_fused

    def watch(module):
        alive.append(sum(reference() is not None for reference in fused))
        return from_fused(module)

    monkeypatch.setattr(surgery.Experts, "from_fused", watch)
    apply_bitnet(model)
    assert alive == [2, 1]


def test_a_student_is_not_operated_on_twice():
    model = apply_bitnet(tiny_model("llama"))
    with pytest.raises(SurgeryError, match="already quantised"):
        apply_bitnet(model)
    with pytest.raises(ValueError, match="pack"):
        apply_bitnet(tiny_model("llama"), BitNetConfig(quantization_mode="offline"))


def test_trainability_and_tied_embeddings_survive():
    model = tiny_model("llama")
    model.model.layers[0].self_attn.q_proj.weight.requires_grad_(False)
    weight = model.model.layers[0].mlp.up_proj.weight
    apply_bitnet(model)
    assert not model.model.layers[0].self_attn.q_proj.weight.requires_grad
    assert model.model.layers[0].mlp.up_proj.weight is weight
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_shared_config_object_stays_that_of_the_teacher(tmp_path):
    config = tiny_config("gemma3_text")
    teacher, student = AutoModelForCausalLM.from_config(config), AutoModelForCausalLM.from_config(config)
    apply_bitnet(student)
    assert getattr(teacher.config, "quantization_config", None) is None
    assert student.model.layers[0].self_attn.config is student.config
    teacher.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert not any(isinstance(module, BitLinear) for module in again.modules())


@pytest.mark.parametrize("model_type", ["biogpt", "bloom", "gpt_neox_japanese", "persimmon", "diffllama", "stablelm"])
def test_more_architectures_of_the_table(model_type):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](vocab_size=50, pad_token_id=0, **sizes))
    apply_bitnet(model)
    converted = [module for module in model.modules() if isinstance(module, BitLinear)]
    assert len(converted) >= 4 and sum(module.rms_norm is not None for module in converted) % 2 == 0
    assert [name for name, module in model.named_modules() if type(module) is nn.Linear] in (
        ["lm_head"],
        ["embed_out"],
        ["output_projection"],
    )
