"""`from_pretrained` and `save_pretrained` in both modes, for every architecture."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import warm
from architectures import ARCHITECTURES, random_tokens, tiny_model
from hf_bitdistill import BitNetConfig, SurgeryError, apply_bitnet, pack
from hf_bitdistill.nn import BitLinear, SubLN, TernaryLinear
from hf_bitdistill.quantization import PackedWeightError, integer_accumulators


def logits(model, tokens):
    with torch.no_grad():
        return model.eval()(tokens).logits


def same_tensors(first: Path, second: Path) -> bool:
    files = sorted(file.name for file in first.glob("*.safetensors"))
    return files == sorted(file.name for file in second.glob("*.safetensors")) and all(
        (first / file).read_bytes() == (second / file).read_bytes() for file in files
    )


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_full_precision_to_online_to_offline(model_type, tmp_path):
    model, tokens = tiny_model(model_type), random_tokens()
    model.save_pretrained(tmp_path / "full")

    online = AutoModelForCausalLM.from_pretrained(tmp_path / "full", quantization_config=BitNetConfig())
    assert all((m.weight == 1).all() for m in online.modules() if isinstance(m, SubLN))
    expected = logits(apply_bitnet(model), tokens)
    assert torch.equal(logits(online, tokens), expected)

    online.save_pretrained(tmp_path / "online")
    resumed = AutoModelForCausalLM.from_pretrained(tmp_path / "online")
    assert all(parameter.requires_grad for parameter in resumed.parameters())
    assert torch.equal(logits(resumed, tokens), expected)
    resumed.save_pretrained(tmp_path / "online_again")
    assert same_tensors(tmp_path / "online", tmp_path / "online_again")

    offline = pack(resumed, table_bits=32)
    assert torch.equal(logits(offline, tokens), expected)
    offline.save_pretrained(tmp_path / "offline")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "offline")
    assert torch.equal(logits(loaded, tokens), expected)
    loaded.save_pretrained(tmp_path / "offline_again")
    assert same_tensors(tmp_path / "offline", tmp_path / "offline_again")


@pytest.mark.parametrize("granularity", ["tensor", "row", "group"])
@pytest.mark.parametrize("sub_norm", ["all", "none"])
def test_options_survive_and_accumulators_are_equal(granularity, sub_norm, tmp_path):
    config = BitNetConfig(weight_granularity=granularity, group_size=64, sub_norm=sub_norm, sub_norm_eps=1e-4)
    online = apply_bitnet(tiny_model("llama", intermediate_size=150), config)
    offline = pack(online, table_bits=32)
    offline.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.quantization_config.to_dict() == {
        **config.to_dict(),
        "quantization_mode": "offline",
        "weight_bits": 1.6,
    }
    tokens = random_tokens()
    assert torch.equal(logits(loaded, tokens), logits(online, tokens))
    x = torch.randn(3, 150)
    for name, layer in online.named_modules():
        if isinstance(layer, BitLinear):
            packed, codes = loaded.get_submodule(name), layer.ternarize()[0]
            inputs = x[:, : layer.in_features]
            assert torch.equal(
                integer_accumulators(inputs, codes, layer.group_size),
                integer_accumulators(inputs, packed.unpack(), packed.group_size),
            )


def test_online_shards_and_tied_embeddings(tmp_path):
    online = apply_bitnet(tiny_model("llama"))
    online.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert torch.equal(logits(loaded, random_tokens()), logits(online, random_tokens()))


@pytest.mark.parametrize("skip,types", [
    (["layers.0", "experts.2"], {torch.nn.Linear, TernaryLinear}),
    (["mlp.experts"], set()),
])  # fmt: skip
def test_experts_in_full_precision(skip, types, tmp_path):
    """Where some are ternary the others are separate too, so that a checkpoint names all experts in one way."""
    model, tokens = tiny_model("qwen3_moe"), random_tokens()
    model.save_pretrained(tmp_path / "full")
    config = BitNetConfig(modules_to_not_convert=skip)
    online = AutoModelForCausalLM.from_pretrained(tmp_path / "full", quantization_config=config)
    expected = logits(apply_bitnet(model, config), tokens)
    assert torch.equal(logits(online, tokens), expected)
    online.save_pretrained(tmp_path / "online")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "online"), tokens), expected)
    pack(online, table_bits=32).save_pretrained(tmp_path / "offline")
    offline = AutoModelForCausalLM.from_pretrained(tmp_path / "offline")
    assert torch.equal(logits(offline, tokens), expected)
    assert {type(m) for name, m in offline.named_modules() if name.endswith(".1.up_proj")} == types


def test_experts_that_were_offloaded_are_refused(tmp_path):
    tiny_model("qwen3_moe").save_pretrained(tmp_path / "full")
    where = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.norm": "cpu"}
    with pytest.raises(NotImplementedError, match=r"model\.layers\.1.*was offloaded"):
        AutoModelForCausalLM.from_pretrained(
            tmp_path / "full",
            quantization_config=BitNetConfig(),
            device_map={**where, "model.rotary_emb": "cpu", "lm_head": "cpu"},
            offload_folder=tmp_path / "offload",
        )


def test_sequence_classification(tmp_path):
    tiny_model("qwen3").save_pretrained(tmp_path / "full")
    online = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "full", num_labels=3, quantization_config=BitNetConfig()
    )
    assert type(online.score) is torch.nn.Linear
    expected = logits(online, random_tokens())
    assert expected.shape == (2, 3)
    online.save_pretrained(tmp_path / "online")
    resumed = AutoModelForSequenceClassification.from_pretrained(tmp_path / "online")
    assert torch.equal(logits(resumed, random_tokens()), expected)
    pack(resumed, table_bits=32).save_pretrained(tmp_path / "offline")
    offline = AutoModelForSequenceClassification.from_pretrained(tmp_path / "offline")
    assert torch.equal(logits(offline, random_tokens()), expected)


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_bfloat16(mode, tmp_path):
    model = apply_bitnet(tiny_model("llama"))
    (model if mode == "online" else pack(model)).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.dtype == torch.bfloat16
    layer = loaded.model.layers[0].self_attn.o_proj
    assert layer.rms_norm.weight.dtype == torch.bfloat16
    assert layer.weight.dtype == (torch.bfloat16 if mode == "online" else torch.uint8)
    if mode == "offline":
        assert layer.weight_scale.dtype == torch.float32
        assert loaded.to(torch.bfloat16).model.layers[0].self_attn.o_proj.weight_scale.dtype == torch.float32
    assert torch.isfinite(logits(loaded, random_tokens())).all()


def test_an_online_student_is_an_ordinary_model():
    model = apply_bitnet(tiny_model("llama"))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert state["model.layers.0.mlp.up_proj.weight"].shape == (88, 48)
    assert model.model.layers[0].mlp.up_proj.weight.shape == (88, 48)
    other = apply_bitnet(tiny_model("llama", seed=9))
    other.load_state_dict(state)
    assert torch.equal(logits(other, random_tokens()), logits(model, random_tokens()))
    # A full-precision state dict fits too; the teacher has no SubLN.
    missing = other.load_state_dict(tiny_model("llama").state_dict(), strict=False).missing_keys
    assert missing and all("rms_norm" in key for key in missing)
    model.half().float()


def test_save_pretrained_honours_a_gathered_state_dict(tmp_path):
    """FSDP and DeepSpeed gather the weights and pass them; a quantizer on the model would make transformers drop them."""
    model = apply_bitnet(tiny_model("llama"))
    state = {name: torch.full_like(value, 0.5) for name, value in model.state_dict().items()}
    model.save_pretrained(tmp_path / "from_memory", state_dict=dict(state))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "from_memory")
    assert (loaded.model.layers[1].mlp.down_proj.weight == 0.5).all()

    tiny_model("llama").save_pretrained(tmp_path / "full")
    online = AutoModelForCausalLM.from_pretrained(tmp_path / "full", quantization_config=BitNetConfig())
    online.save_pretrained(tmp_path / "online", state_dict=dict(state))
    assert (AutoModelForCausalLM.from_pretrained(tmp_path / "online").model.norm.weight == 0.5).all()


def test_pack_leaves_the_student_alone_or_replaces_it():
    model = apply_bitnet(tiny_model("llama"))
    packed = pack(model, table_bits=32)
    assert not any(isinstance(module, TernaryLinear) for module in model.modules())
    assert packed.model.embed_tokens.weight.data_ptr() != model.model.embed_tokens.weight.data_ptr()
    assert packed.lm_head.weight is packed.model.embed_tokens.weight
    assert not any(parameter.requires_grad for parameter in packed.parameters())
    assert pack(model, inplace=True, table_bits=32) is model
    assert not any(isinstance(module, BitLinear) for module in model.modules())
    with pytest.raises(SurgeryError, match="packed already"):
        pack(model)
    with pytest.raises(SurgeryError, match="not a BitNet student"):
        pack(tiny_model("llama"))


def test_pack_refuses_adapters():
    from peft import LoraConfig, get_peft_model

    wrapped = get_peft_model(apply_bitnet(tiny_model("llama")), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(SurgeryError, match="adapters"):
        pack(wrapped)


@pytest.mark.parametrize("value", [0.0, 1.0, float("nan")])
def test_pack_refuses_dead_weights(value):
    model = apply_bitnet(tiny_model("llama"))
    model.model.layers[1].mlp.up_proj.weight.data.fill_(value)
    with pytest.raises(PackedWeightError, match=r"model\.layers\.1\.mlp\.up_proj"):
        pack(model)


def test_offline_mode_needs_an_offline_checkpoint(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="pack"):
        AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=BitNetConfig(quantization_mode="offline"))


def test_a_packed_model_is_not_trained_by_accident(tmp_path):
    from transformers import Trainer, TrainingArguments

    with pytest.raises(ValueError, match=r"cannot perform fine-tuning|do not support training"):
        Trainer(pack(apply_bitnet(tiny_model("llama"))), TrainingArguments(str(tmp_path), report_to=[]))


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_every_save_writes_the_online_shape(model_type, tmp_path):
    tiny_model(model_type).save_pretrained(tmp_path / "full")
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "full", quantization_config=BitNetConfig())
    expected = logits(student, random_tokens())
    for name in ("first", "second", "third"):
        student.save_pretrained(tmp_path / name)
        names = {f"{n}.weight" for n, module in student.named_modules() if isinstance(module, BitLinear)}
        stored = load_file(tmp_path / name / "model.safetensors")
        assert names and all(stored[key].ndim == 3 and stored[key].shape[1] == 1 for key in names)
        student = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        assert torch.equal(logits(student, random_tokens()), expected)


@torch.no_grad()
def test_a_packed_layer_on_the_disk(tmp_path):
    packed = pack(apply_bitnet(tiny_model("llama")), table_bits=32).eval()
    packed.save_pretrained(tmp_path / "packed")
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path / "packed",
        device_map={**places, "model.layers.0": "cpu", "model.layers.1": "disk"},
        offload_folder=tmp_path / "offload",
    )
    assert loaded.model.layers[1].mlp.down_proj.rms_norm.weight.device.type == "meta"
    torch.testing.assert_close(logits(loaded, random_tokens()), logits(packed, random_tokens()))


_WITHOUT_IMPORT = """
import sys
from transformers import AutoModelForCausalLM
for folder in sys.argv[1:]:
    print("=====", folder, file=sys.stderr)
    try:
        AutoModelForCausalLM.from_pretrained(folder)
    except Exception as error:
        print(type(error).__name__, error, file=sys.stderr)
    else:
        print("it loads", file=sys.stderr)
"""


def test_loading_without_the_import_fails_loudly(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path / "plain")
    models = {
        "made": apply_bitnet(tiny_model("llama")),
        "loaded": AutoModelForCausalLM.from_pretrained(tmp_path / "plain", quantization_config=BitNetConfig()),
        "offline": pack(apply_bitnet(tiny_model("llama"))),
    }
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
    folders = [str(tmp_path / name) for name in models]
    result = warm.run([sys.executable, "-c", _WITHOUT_IMPORT, *folders], ours=False)
    assert result.returncode == 0, result.stderr
    _, *told = result.stderr.split("===== ")
    assert len(told) == len(models)
    for text in told:
        assert "it loads" not in text and "ignore_mismatched_sizes" in text
    assert "Unknown quantization type, got bitdistill" in result.stderr


def test_a_real_model(shared_dir, tmp_path):
    path = shared_dir / "models" / "stories260K"
    online = AutoModelForCausalLM.from_pretrained(path, quantization_config=BitNetConfig())
    tokens = torch.randint(3, 500, (2, 20), generator=torch.Generator().manual_seed(0))
    expected = logits(online, tokens)
    offline = pack(online, table_bits=32)
    offline.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path), tokens), expected)
