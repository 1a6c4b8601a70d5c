"""The files of a packed student, written from tensors where there is no model in memory that could save itself."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import save_torch_state_dict
from torch import Tensor, nn
from transformers import PreTrainedConfig

from ..nn import BitLinear, TernaryLinear
from ..ops.dense_storage import pack_stored
from .config_note import write_note
from .digests import add_digests


def write_offline(
    folder: Path, tensors: dict[str, Tensor], config: PreTrainedConfig, max_shard_size: str, model: nn.Module
) -> None:
    """Write weights with digests, and `config.json`.

    Args:
        folder: an empty one, which takes its place later (see [`hf_bitdistill.files.model_folder.replace_model`]).
        tensors: all of an offline student, by name; ternary weights with 2 bits each. Replaced one by one by what is written.
        config: with its `quantization_config`, a [`BitNetConfig`], which says how ternary weights are written.
        model: with the names and the shapes of the ternary layers, on any device.
    """
    if config.quantization_config.weight_bits != 2:
        for name, module in model.named_modules():
            if isinstance(module, (BitLinear, TernaryLinear)):
                tensors[f"{name}.weight"] = pack_stored(tensors[f"{name}.weight"], module.out_features)
    save_torch_state_dict(tensors, folder, max_shard_size=max_shard_size, metadata={"format": "pt"})
    config.save_pretrained(folder)
    write_note(folder)
    add_digests(sorted(folder.glob("*.safetensors")), config.quantization_config)
