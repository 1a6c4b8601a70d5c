"""TRL trains students, and LoRA beside packed ones: SFT, DPO and GRPO, a step or two."""

import copy
import math

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from hf_bitdistill import BitNetConfig, pack
from hf_bitdistill.adapters.lora import TernaryLora
from hf_bitdistill.nn import BitLinear


trl = pytest.importorskip("trl")

TEXTS = [f"a {word} film number {number} ." for number in range(4) for word in ("dull", "fine")]
PREFERENCES = {
    "prompt": ["Review: "] * 4,
    "chosen": ["a warm and funny film"] * 4,
    "rejected": ["a dull story"] * 4,
}


@pytest.fixture
def base(tmp_path, tiny_llama_config, tiny_tokenizer):
    """Folder of a full-precision model."""
    torch.manual_seed(0)
    LlamaForCausalLM(tiny_llama_config).save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def make_online(folder):
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=BitNetConfig(), dtype=torch.float32)


@pytest.fixture(params=["online", "LoRA beside packed"])
def trained(request, base):
    """Arguments of a trainer, and a check of what it trained."""
    from peft import LoraConfig

    online = make_online(base)
    if request.param == "online":
        before = online.model.layers[0].mlp.up_proj.weight.detach().clone()

        def check(model):
            assert isinstance(model.model.layers[0].mlp.up_proj, BitLinear)
            assert not torch.equal(model.model.layers[0].mlp.up_proj.weight, before)

        return {"model": online}, check
    packed = pack(online, table_bits=32)
    codes = packed.model.layers[0].mlp.up_proj.weight.clone()

    def check(model):
        layer = model.get_base_model().model.layers[0].mlp.up_proj
        assert isinstance(layer, TernaryLora) and torch.equal(layer.base_layer.weight, codes)
        assert layer.lora_B["default"].weight.abs().sum() > 0

    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    return {"model": packed, "peft_config": config}, check


def settings(folder, **options):
    common = {
        "output_dir": str(folder / "run"),
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
    }
    return {**common, **options}


def first_loss(trainer):
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses and all(math.isfinite(loss) for loss in losses)
    return losses[0]


@pytest.mark.parametrize("packing", [False, True])
def test_sft(trained, tmp_path, tiny_tokenizer, packing):
    arguments, check = trained
    trainer = trl.SFTTrainer(
        args=trl.SFTConfig(**settings(tmp_path, max_length=24, packing=packing)),
        train_dataset=Dataset.from_dict({"text": TEXTS}),
        processing_class=tiny_tokenizer,
        **arguments,
    )
    first_loss(trainer)
    check(trainer.model)


def test_sft_makes_the_student_itself(base, tmp_path):
    options = {"quantization_config": BitNetConfig(), "dtype": "float32"}
    trainer = trl.SFTTrainer(
        str(base),
        args=trl.SFTConfig(**settings(tmp_path, max_length=24, model_init_kwargs=options)),
        train_dataset=Dataset.from_dict({"text": TEXTS}),
    )
    first_loss(trainer)
    trainer.save_model(str(tmp_path / "student"))
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    layers = [module for module in student.modules() if isinstance(module, BitLinear)]
    assert len(layers) == 2 * 7 and torch.equal(
        layers[0].weight, trainer.model.model.layers[0].self_attn.q_proj.weight
    )


def dpo(folder, tokenizer, **arguments):
    return trl.DPOTrainer(
        args=trl.DPOConfig(**settings(folder, max_length=32, **arguments.pop("options", {}))),
        train_dataset=Dataset.from_dict(PREFERENCES),
        processing_class=tokenizer,
        **arguments,
    )


def test_dpo(trained, tmp_path, tiny_tokenizer):
    """Policy and reference are the same to begin with: the loss is ln 2."""
    arguments, check = trained
    if "peft_config" not in arguments:  # (with an adapter the reference is the base without)
        arguments["ref_model"] = copy.deepcopy(arguments["model"])
    trainer = dpo(tmp_path, tiny_tokenizer, **arguments)
    assert abs(first_loss(trainer) - math.log(2)) < 1e-4
    check(trainer.model)


def test_dpo_loads_its_reference_by_the_name_in_the_config(base, tmp_path, tiny_tokenizer):
    """A student that was saved is its own reference, and so is one that the trainer makes; one made in memory has the name of its
    full-precision model."""
    fresh = make_online(base)
    assert fresh.config._name_or_path == str(base)
    wrong = dpo(tmp_path, tiny_tokenizer, model=fresh)
    assert not any(isinstance(module, BitLinear) for module in wrong.ref_model.modules())
    assert abs(first_loss(wrong) - math.log(2)) > 1e-3
    make_online(base).save_pretrained(tmp_path / "student")
    tiny_tokenizer.save_pretrained(tmp_path / "student")
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    assert saved.config._name_or_path == str(tmp_path / "student")
    options = {"model_init_kwargs": {"quantization_config": BitNetConfig(), "dtype": "float32"}, "max_steps": 1}
    for arguments in ({"model": saved}, {"model": str(base), "options": options}):
        assert abs(first_loss(dpo(tmp_path, tiny_tokenizer, **arguments)) - math.log(2)) < 1e-4


def test_grpo(trained, tmp_path, tiny_tokenizer):
    arguments, check = trained
    trainer = trl.GRPOTrainer(
        args=trl.GRPOConfig(
            **settings(
                tmp_path, per_device_train_batch_size=4, num_generations=4, max_completion_length=6, learning_rate=1e-2
            )
        ),
        reward_funcs=lambda completions, **_: [float(len(set(text))) for text in completions],
        train_dataset=Dataset.from_dict({"prompt": PREFERENCES["prompt"]}),
        processing_class=tiny_tokenizer,
        **arguments,
    )
    first_loss(trainer)
    check(trainer.model)
