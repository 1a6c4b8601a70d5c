"""Checkpoints in the BitNet formats of transformers, made of transformers' own layers."""

import torch
from transformers import AutoModelForCausalLM
from transformers.integrations.bitnet import pack_weights, replace_with_bitnet_linear
from transformers.utils.quantization_config import BitNetQuantConfig

from architectures import tiny_model


# name -> options of transformers' own quantisation config
STOCK = {
    "bitlinear": {"linear_class": "bitlinear", "quantization_mode": "offline"},
    "offline": {"linear_class": "autobitlinear", "quantization_mode": "offline"},
    "online": {"linear_class": "autobitlinear", "quantization_mode": "online"},
    "rms_norm": {"linear_class": "bitlinear", "quantization_mode": "offline", "use_rms_norm": True},
}


def save_stock(folder, kind, model_type="bitnet", **overrides):
    """Write one, and return a float32 model that computes what the format means (activations rounded as in the format)."""
    config = BitNetQuantConfig(**STOCK[kind])
    source = tiny_model(model_type, **overrides)
    tensors, ternary = {}, {}
    for name, tensor in source.state_dict().items():
        if "_proj.weight" not in name:
            tensors[name] = tensor.clone()
            continue
        gamma = tensor.abs().mean()
        codes = (tensor / gamma).round().clamp(-1, 1)
        ternary[name] = (codes, gamma)
        if kind == "online":
            tensors[name] = tensor.clone()
            continue
        scale = 1 / gamma if config.linear_class == "bitlinear" else gamma
        tensors[name] = pack_weights(codes.clone())
        tensors[name.replace(".weight", ".weight_scale")] = scale.reshape(1)
        if config.use_rms_norm:
            torch.manual_seed(len(name))
            tensors[name.replace(".weight", ".rms_norm.weight")] = 1 + 0.1 * torch.randn(tensor.shape[1])
    source.config.quantization_config = config
    source.save_pretrained(folder, state_dict=dict(tensors))

    # The online layer of transformers with ternary weights rounds activations as all of the formats do.
    expected = AutoModelForCausalLM.from_config(source.config)
    online = BitNetQuantConfig(
        linear_class="autobitlinear", quantization_mode="online", use_rms_norm=config.use_rms_norm
    )
    expected = replace_with_bitnet_linear(expected, ["lm_head"], online).to_empty(device="cpu")
    fresh = tiny_model(model_type, **overrides)
    expected.model.rotary_emb = fresh.model.rotary_emb
    values = {name: value for name, value in tensors.items() if not name.endswith("weight_scale")}
    for name, (codes, gamma) in ternary.items():
        values[name] = codes * gamma
    expected.load_state_dict(values)
    for module in expected.modules():
        if hasattr(module, "online_quant"):
            module.online_quant, module.weight_scale = False, torch.ones(1)
    return expected.eval()
