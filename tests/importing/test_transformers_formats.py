"""Checkpoints that others publish, in exactly their layouts, with scales that nothing but the file tells.

Each is written here field by field, and compared with a dense model of transformers that has the weights which the format's definition gives.
"""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from architectures import random_tokens
from hf_bitdistill import pack
from hf_bitdistill.cli.main import main
from hf_bitdistill.export import export_transformers
from hf_bitdistill.files.tensor_headers import CheckpointError
from hf_bitdistill.importing import import_transformers
from hf_bitdistill.nn import TernaryLinear
from hf_bitdistill.runtime import NotAStudentError
from hf_bitdistill.verify import verify
from optimum.bitnet import BitNetModelForCausalLM
from students import make_student


SIZES = {
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 88,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}
BITNET = {
    **SIZES,
    "architectures": ["BitNetForCausalLM"],
    "auto_map": {
        "AutoConfig": "configuration_bitnet.BitNetConfig",
        "AutoModelForCausalLM": "modeling_bitnet.BitNetForCausalLM",
    },
    "hidden_act": "relu2",
    "model_type": "bitnet",
    "tie_word_embeddings": True,
}
LLAMA = {**SIZES, "architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "model_type": "llama"}
# name -> config.json, and how a weight is stored: packed with a scale that multiplies or divides, or latent.
PUBLISHED = {
    "microsoft/bitnet-b1.58-2B-4T": (
        BITNET,
        {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"},
        "multiplies",
    ),
    "microsoft/bitnet-b1.58-2B-4T-bf16": (
        BITNET,
        {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"},
        "latent",
    ),
    "HF1BitLLM/Llama3-8B-1.58-100B-tokens": (
        {**LLAMA, "tie_word_embeddings": False},
        {"modules_to_not_convert": None, "quant_method": "bitnet"},
        "divides",
    ),
    # (Also what onebitllms' quantize_to_1bit writes.)
    "tiiuae/Falcon-E": (
        {**LLAMA, "tie_word_embeddings": False, "is_bitnet_config": True, "pretraining_tp": 1},
        {"modules_to_not_convert": ["lm_head"], "quant_method": "bitnet"},
        "divides",
    ),
    "tiiuae/Falcon-E, prequantized": ({**LLAMA, "tie_word_embeddings": False}, None, "latent"),
}


def packed(codes):
    """Row r of the stored matrix holds rows r, r + R/4, r + 2R/4, r + 3R/4, lowest bits first, each code plus one."""
    quarter = codes.shape[0] // 4
    rows = []
    for row in range(quarter):
        fields = [codes[row + k * quarter] + 1 for k in range(4)]
        rows.append(fields[0] + 4 * fields[1] + 16 * fields[2] + 64 * fields[3])
    return torch.stack(rows).to(torch.uint8)


def publish(folder, name):
    """Write a checkpoint; returns the effective weights, float32, by name."""
    config, quantization, kind = PUBLISHED[name]
    folder.mkdir(exist_ok=True)
    written = {**config, **({"quantization_config": quantization} if quantization else {})}
    (folder / "config.json").write_text(json.dumps(written))
    options = {key: value for key, value in config.items() if key not in ("architectures", "auto_map", "torch_dtype")}
    shapes = AutoModelForCausalLM.from_config(AutoConfig.for_model(options.pop("model_type"), **options)).state_dict()
    torch.manual_seed(3)
    tensors, effective = {}, {}
    for index, (key, tensor) in enumerate(shapes.items()):
        if key == "lm_head.weight" and config["tie_word_embeddings"]:
            continue
        if not key.endswith("_proj.weight"):
            value = (1 + 0.2 * torch.randn(tensor.shape)) if "norm" in key else torch.randn(tensor.shape)
            tensors[key] = value.bfloat16()
            effective[key] = tensors[key].float()
        elif kind == "latent":
            tensors[key] = (0.1 * torch.randn(tensor.shape)).bfloat16()
            gamma = tensors[key].float().abs().mean()
            effective[key] = (tensors[key].float() / gamma).round().clamp(-1, 1) * gamma
        else:
            codes = torch.randint(-1, 2, tensor.shape)
            # Far from one, and no mean of anything.
            scale = torch.tensor([0.04 + 0.01 * (index % 5)]).bfloat16()
            scale = 1 / scale if kind == "divides" else scale
            tensors[key] = packed(codes)
            tensors[key.replace(".weight", ".weight_scale")] = scale
            effective[key] = codes / scale.float() if kind == "divides" else codes * scale.float()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return effective


def rounded(module, inputs):
    x = inputs[0]
    scale = 127 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
    return ((x * scale).round().clamp(-128, 127) / scale,)


@torch.no_grad()
def expected_logits(name, effective, tokens):
    config = PUBLISHED[name][0]
    options = {key: value for key, value in config.items() if key not in ("architectures", "auto_map", "torch_dtype")}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(options.pop("model_type"), **options)).float().eval()
    missing, unexpected = model.load_state_dict(effective, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    for key, module in model.named_modules():
        if key.endswith("_proj"):
            module.register_forward_pre_hook(rounded)
    return model(tokens).logits


def close(logits, expected):
    return ((logits - expected).abs().median() / expected.std()).item()


@pytest.mark.parametrize("name", sorted(PUBLISHED))
@torch.no_grad()
def test_known_answers(tmp_path, name, native_decoder):
    effective = publish(tmp_path / "published", name)
    latent = PUBLISHED[name][1] is None
    import_transformers(tmp_path / "published", tmp_path / "out", latent=latent, answers=False)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    layers = {key: module for key, module in model.named_modules() if isinstance(module, TernaryLinear)}
    assert len(layers) == 14
    for key, layer in layers.items():
        weight = layer.unpack(torch.float32) * layer.weight_scale
        assert torch.allclose(weight, effective[f"{key}.weight"], rtol=1e-6, atol=0), key
    tokens = random_tokens(2, 9)
    expected = expected_logits(name, effective, tokens)
    assert close(model(tokens).logits, expected) < 2e-3
    native = BitNetModelForCausalLM.from_pretrained(tmp_path / "out", head_bits=32, kv_dtype="float32")
    assert native.backend == "native" and close(native(tokens).logits, expected) < 2e-3
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "auto_map" not in config and config["quantization_config"]["sub_norm"] == "none"
    assert config["dtype"] == "bfloat16"


def test_command(tmp_path, tiny_tokenizer, capsys):
    publish(tmp_path / "published", "microsoft/bitnet-b1.58-2B-4T")
    tiny_tokenizer.save_pretrained(tmp_path / "published")
    published, out = str(tmp_path / "published"), str(tmp_path / "out")
    assert main(["import", "transformers", published, out, "--table_bits", "8"]) == 0
    assert "| ternary codes |" in capsys.readouterr().out
    assert (tmp_path / "out" / "tokenizer.json").is_file() and (tmp_path / "out" / "verification.json").is_file()
    assert verify(out, answers=False).passed
    assert load_file(tmp_path / "out" / "model.safetensors")["model.embed_tokens.weight"].dtype == torch.int8
    for arguments, message in (
        ([published, published], "the model that is read"),
        ([out, str(tmp_path / "again")], "a student of this library already"),
        ([published, out, "--latent"], "without --latent"),
    ):
        assert main(["import", "transformers", *arguments]) == 1
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and message in lines[0], lines


def test_weights_in_full_precision(tmp_path):
    """Of which nothing says that they are a BitNet's, and those that are ternary already."""
    effective = publish(tmp_path / "latent", "tiiuae/Falcon-E, prequantized")
    with pytest.raises(NotAStudentError, match=r"import it with --latent"):
        import_transformers(tmp_path / "latent", tmp_path / "out")
    save_file({key: value.bfloat16() for key, value in effective.items()}, tmp_path / "latent" / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"'model.layers.0.self_attn.q_proj.weight' holds one magnitude and zeros"
    ):
        import_transformers(tmp_path / "latent", tmp_path / "out", latent=True)
    assert not (tmp_path / "out").exists()


def test_ternary_matrices_in_floats(tmp_path):
    """What transformers holds of a student with a scale a row tells its scales no more."""
    pack(make_student(options={"weight_granularity": "row"})).save_pretrained(tmp_path / "packed")
    export_transformers(tmp_path / "packed", tmp_path / "copy")
    with pytest.raises(
        NotAStudentError, match=r"copy/model.safetensors: tensor '.*q_proj.weight' is a ternary matrix .* in floats"
    ):
        import_transformers(tmp_path / "copy", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_damaged(tmp_path):
    publish(tmp_path / "published", "tiiuae/Falcon-E")
    file = tmp_path / "published" / "model.safetensors"
    tensors = load_file(file)
    key = "model.layers.1.mlp.up_proj.weight"
    save_file({**tensors, key: tensors[key] | 3}, file)
    with pytest.raises(CheckpointError, match=f"model.safetensors: tensor '{key}' holds the invalid code 3"):
        import_transformers(tmp_path / "published", tmp_path / "out")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model.safetensors: damaged"):
        import_transformers(tmp_path / "published", tmp_path / "out")
    assert not (tmp_path / "out").exists()
