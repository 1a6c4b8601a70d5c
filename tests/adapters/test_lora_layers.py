"""LoRA beside ternary layers, with PEFT's own calls and nothing of ours but the import."""

import copy
import pickle
import re
import sys

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

import warm
from adapter_helpers import draw
from architectures import VOCAB_SIZE, random_tokens, tiny_model
from hf_bitdistill import BitNetConfig, SurgeryError, apply_bitnet, pack
from hf_bitdistill.adapters.lora import TernaryLora
from hf_bitdistill.nn import BitLinear, TernaryLinear
from students import make_student


@torch.no_grad()
def logits(model):
    return model(random_tokens(2, 9)).logits


def packed_student(**options):
    return pack(make_student(**options), table_bits=32)


@pytest.mark.parametrize("options", [{"sub_norm": "output"}, {"sub_norm": "all", "weight_granularity": "row"}])
@pytest.mark.parametrize("kind", [BitLinear, TernaryLinear])
@torch.no_grad()
def test_the_low_rank_product_reads_what_the_ternary_one_reads(with_lora, kind, options):
    student = make_student(options=options, attention_bias=True)
    model = with_lora(student if kind is BitLinear else pack(student, table_bits=32))
    layers = [module for module in model.modules() if isinstance(module, TernaryLora)]
    assert len(layers) == 2 * 7 and all(isinstance(layer.base_layer, kind) for layer in layers)
    x = torch.randn(3, 5, 88, generator=torch.Generator().manual_seed(1))
    for layer in layers:
        values, base = x[..., : layer.in_features], layer.base_layer
        normed = values if base.rms_norm is None else base.rms_norm(values)
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        assert torch.equal(layer(values), base(values) + normed @ a.T @ b.T * 3.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_new_adapter_changes_nothing(dtype):
    """B starts at zero. In 16 bits too, where the kernels do not round behind the SubLN."""
    student = make_student(dtype=dtype)
    for model in (student, pack(student)):
        before = logits(model)
        adapted = get_peft_model(copy.deepcopy(model), LoraConfig(target_modules="all-linear")).eval()
        assert torch.equal(logits(adapted), before)
        draw(adapted, "default", 0)
        assert not torch.equal(logits(adapted), before)
        with adapted.disable_adapter():
            assert torch.equal(logits(adapted), before)


def test_online_and_packed_compute_the_same(with_lora):
    student = make_student()
    online, packed = with_lora(student), with_lora(pack(student, table_bits=32))
    assert torch.equal(logits(online), logits(packed))


@pytest.mark.parametrize("online", [True, False])
def test_only_the_adapter_is_trained(with_lora, online):
    model = with_lora(make_student() if online else packed_student()).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1.0)
    tokens, losses = random_tokens(2, 9), []
    for _ in range(4):
        loss = model(tokens, labels=tokens).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad.abs().sum() > 0 for parameter in trained)
        optimizer.step()
    assert losses[-1] < losses[0]
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed and all(".lora_" in name for name in changed)


@pytest.mark.parametrize("options", [{}, {"weight_granularity": "group", "group_size": 64}])
@pytest.mark.parametrize("without_kernels", [False, True])
def test_gradients_through_a_packed_layer(monkeypatch, options, without_kernels):
    """Those of the student in training: to what is below, straight through the rounding."""
    student = make_student(options={**options, "sub_norm": "all"}, mlp_bias=True)
    online = student.model.layers[0].mlp.down_proj.requires_grad_(False)
    packed = pack(student, table_bits=32).model.layers[0].mlp.down_proj
    if without_kernels:  # as on an accelerator
        monkeypatch.setattr(TernaryLinear, "_uses_kernels", lambda *_: False)
    x = torch.randn(4, 88, generator=torch.Generator().manual_seed(2))
    gradients = []
    for layer in (online, packed):
        values = x.clone().requires_grad_()
        layer(values).square().sum().backward()
        gradients.append(values.grad)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)
    packed.bias.requires_grad_()
    (y := packed(x)).sum().backward()
    assert torch.equal(packed.bias.grad, torch.full_like(packed.bias, len(y)))


@pytest.mark.parametrize("online", [True, False])
def test_mixed_precision(with_lora, online):
    model = with_lora(make_student() if online else packed_student()).train()
    tokens = random_tokens(2, 9)
    losses = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            losses.append(model(tokens, labels=tokens).loss)
    losses[1].backward()
    torch.testing.assert_close(losses[1].float(), losses[0], rtol=0.02, atol=0.02)
    gradients = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    assert all(torch.isfinite(gradient).all() and gradient.abs().sum() > 0 for gradient in gradients)


def test_save_and_load(with_lora, tmp_path):
    base = packed_student()
    base.save_pretrained(tmp_path / "packed")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "packed")
    adapted = with_lora(base, modules_to_save=["lm_head"], use_rslora=True, target_modules=["q_proj", "down_proj"])
    adapted.save_pretrained(tmp_path / "adapter")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "packed")
    loaded = PeftModel.from_pretrained(again, tmp_path / "adapter")
    assert torch.equal(logits(loaded), logits(adapted))
    assert sum(isinstance(module, TernaryLora) for module in loaded.modules()) == 4
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    # And by its own config alone, in a process that knows nothing else.
    code = (
        "import sys, torch, hf_bitdistill\n"
        "assert not any(name == 'peft' or name.startswith('peft.') for name in sys.modules)\n"
        "from peft import AutoPeftModelForCausalLM\n"
        f"model = AutoPeftModelForCausalLM.from_pretrained({str(tmp_path / 'adapter')!r})\n"
        f"tokens = torch.tensor({random_tokens(2, 9).tolist()})\n"
        f"torch.save(model(tokens).logits.detach(), {str(tmp_path / 'logits')!r})\n"
    )
    done = warm.run([sys.executable, "-c", code], ours=False)
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.load(tmp_path / "logits"), logits(adapted))


@pytest.mark.parametrize("weight_bits", [2, 1.6])
def test_transformers_loads_an_adapter_with_its_base(with_lora, tmp_path, weight_bits):
    """As `pipeline` does, of the adapter's folder alone."""
    pack(make_student(), table_bits=32, weight_bits=weight_bits).save_pretrained(tmp_path / "packed")
    adapted = with_lora(AutoModelForCausalLM.from_pretrained(tmp_path / "packed"))
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert sum(isinstance(module, TernaryLora) for module in loaded.modules()) == 14
    assert torch.equal(logits(loaded), logits(adapted))


def test_several_adapters(with_lora, tmp_path):
    base = packed_student()
    adapted = with_lora(base, seed=1)
    adapted.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj", "o_proj"]))
    first = logits(adapted)
    adapted.set_adapter("other")
    assert torch.equal(logits(adapted), logits(base))
    draw(adapted, "other", 2)
    second = logits(adapted)
    adapted.set_adapter("default")
    assert torch.equal(logits(adapted), first) and not torch.equal(first, second)
    adapted.base_model.set_adapter(["default", "other"])
    both = logits(adapted)
    assert not torch.equal(both, first) and not torch.equal(both, second)
    # One batch, an adapter a row.
    adapted.base_model.set_adapter("default")
    with torch.no_grad():
        mixed = adapted(random_tokens(2, 9), adapter_names=["other", "__base__"]).logits
    torch.testing.assert_close(mixed, torch.stack([second[0], logits(base)[1]]), rtol=1e-4, atol=1e-5)
    adapted.delete_adapter("other")
    assert torch.equal(logits(adapted), first)
    assert torch.equal(logits(adapted.unload()), logits(base))


def test_counts_are_logical(with_lora, capsys):
    student = make_student()
    online, packed = with_lora(student), with_lora(pack(student))
    assert packed.get_nb_trainable_parameters() == online.get_nb_trainable_parameters()
    packed.print_trainable_parameters()
    total = sum(parameter.numel() for parameter in online.parameters())
    assert f"all params: {total:,d}" in capsys.readouterr().out
    small = with_lora(pack(student, table_bits=8))
    assert small.get_nb_trainable_parameters() == online.get_nb_trainable_parameters()
    copied = copy.deepcopy(packed)
    trainable = [parameter.requires_grad_(False) for parameter in packed.parameters() if parameter.requires_grad]
    assert trainable and packed.get_nb_trainable_parameters()[0] == 0
    assert copied.get_nb_trainable_parameters() == online.get_nb_trainable_parameters()
    assert pickle.loads(pickle.dumps(copied)).get_nb_trainable_parameters() == online.get_nb_trainable_parameters()


def test_trainer_trains_an_adapter_of_a_packed_model(tmp_path):
    rows = [{"input_ids": row, "labels": row} for row in random_tokens(4, 9).tolist()]
    options = {"max_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "report_to": "none"}
    options |= {"use_cpu": True, "save_strategy": "steps", "save_steps": 1}
    base = packed_student()
    with pytest.raises(ValueError, match="attach trainable adapters"):
        Trainer(base, TrainingArguments(str(tmp_path), **options), train_dataset=rows)
    adapted = get_peft_model(base, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    trainer = Trainer(adapted, TrainingArguments(str(tmp_path), **options), train_dataset=rows)
    trainer.train()
    trainer.save_model(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(packed_student(), tmp_path / "adapter")
    assert torch.equal(logits(loaded), logits(adapted.eval()))
    with loaded.disable_adapter():
        assert not torch.equal(logits(loaded), logits(adapted))
    fresh = get_peft_model(packed_student(), LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    resumed = Trainer(fresh, TrainingArguments(str(tmp_path), **options), train_dataset=rows)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert torch.equal(logits(fresh.eval()), logits(adapted))


def test_pack_refuses_and_says_how(with_lora, tmp_path):
    student = make_student()
    adapted = with_lora(student)
    for model in (adapted, adapted.get_base_model()):
        with pytest.raises(SurgeryError, match=r"pack\(peft_model.unload\(\)\)"):
            pack(model)
    with pytest.raises(ValueError, match=r"carries adapters \(in 'model.layers.0.self_attn.q_proj' and 13 other"):
        adapted.get_base_model().save_pretrained(tmp_path / "student")
    # As it says.
    before = logits(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    packed = pack(adapted.unload(), table_bits=32)
    packed.save_pretrained(tmp_path / "packed")
    packed = AutoModelForCausalLM.from_pretrained(tmp_path / "packed")
    assert torch.equal(logits(PeftModel.from_pretrained(packed, tmp_path / "adapter")), before)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"use_dora": True}, "DoraLinearVariant is not supported on ternary layers"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' takes a part of the base weight"),
        ({"init_lora_weights": "olora"}, "init_lora_weights='olora'"),
    ],
)
@pytest.mark.parametrize("online", [True, False])
def test_what_is_no_low_rank_product_is_refused(online, options, message):
    model = make_student() if online else packed_student()
    with pytest.raises(ValueError, match=message):
        get_peft_model(model, LoraConfig(target_modules=["q_proj"], **options))


@pytest.mark.parametrize("online", [True, False])
def test_other_adapters_are_refused(online):
    from peft import IA3Config, LoHaConfig

    configs = [LoHaConfig(target_modules=["q_proj"]), IA3Config(target_modules=["q_proj"], feedforward_modules=[])]
    if online:  # (a packed weight is no parameter)
        configs.append(LoraConfig(target_modules=[], target_parameters=["q_proj.weight"]))
    for config in configs:
        with pytest.raises(NotImplementedError, match="ternary layers take LoRA, by target_modules"):
            get_peft_model(make_student() if online else packed_student(), config)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "gate_proj", "up_proj", "down_proj"]])
@pytest.mark.parametrize("model_type", ["qwen3_moe", "mixtral"])
def test_experts_are_not_left_out_without_a_word(model_type, targets):
    """PEFT knows them as fused tensors."""
    student = make_student(model_type)
    targets = [*targets, "w1", "w2", "w3"] if model_type == "mixtral" and targets != "all-linear" else targets
    try:
        adapted = get_peft_model(student, LoraConfig(target_modules=targets))
    except ValueError as error:
        assert re.search("is for experts.* Name other layers", str(error))
    else:  # (versions of PEFT that take this for what it says)
        experts = [
            name for name, module in adapted.named_modules() if isinstance(module, TernaryLora) and ".experts." in name
        ]
        assert len(experts) == 2 * 4 * 3
    adapted = get_peft_model(make_student(model_type), LoraConfig(target_modules=["q_proj", "o_proj"]))
    assert sum(isinstance(module, TernaryLora) for module in adapted.modules()) == 4


def test_full_precision_models_are_left_to_peft():
    model = get_peft_model(tiny_model("llama"), LoraConfig(target_modules="all-linear"))
    kinds = {type(module) for module in model.modules() if hasattr(module, "lora_A")}
    assert kinds == {__import__("peft").tuners.lora.Linear}
    assert "get_nb_trainable_parameters" not in vars(model)
    # Layers of a student that stayed in full precision too.
    student = apply_bitnet(tiny_model("llama"), BitNetConfig(modules_to_not_convert=["q_proj"]))
    model = get_peft_model(student, LoraConfig(target_modules=["q_proj", "k_proj"]))
    kinds = [type(module).__name__ for module in model.modules() if hasattr(module, "lora_A")]
    assert kinds == ["Linear", "TernaryLora"] * 2


def test_an_adapter_that_would_name_the_wrong_base(tmp_path, caplog):
    """The student of a full-precision checkpoint names that as where it came from."""
    tiny_model("llama").save_pretrained(tmp_path / "base")
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "base", quantization_config=BitNetConfig())
    get_peft_model(copy.deepcopy(student), LoraConfig(target_modules=["q_proj"]))
    assert "will name as their base model: a full-precision model" in caplog.text
    caplog.clear()
    student.save_pretrained(tmp_path / "student")
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    adapted = get_peft_model(student, LoraConfig(target_modules=["q_proj"]))
    draw(adapted, "default", 0)
    adapted.save_pretrained(tmp_path / "adapter")
    assert not caplog.text
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(loaded), logits(adapted.eval()))
    assert logits(loaded).shape[-1] == VOCAB_SIZE
