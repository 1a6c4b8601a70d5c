"""The files of a packed student, written from tensors where there is no model in memory that could save itself."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import save_torch_state_dict
from torch import Tensor
from transformers import PreTrainedConfig

from .config_note import write_note
from .digests import add_digests


def write_offline(folder: Path, tensors: dict[str, Tensor], config: PreTrainedConfig, max_shard_size: str) -> None:
    """Write weights with digests, and `config.json`.

    Args:
        folder: an empty one, which takes its place later (see [`hf_bitdistill.model_folder.replace_model`]).
        tensors: all of an offline student, by name.
        config: with its `quantization_config`, a [`BitNetConfig`].
    """
    save_torch_state_dict(tensors, folder, max_shard_size=max_shard_size, metadata={"format": "pt"})
    config.save_pretrained(folder)
    write_note(folder)
    add_digests(sorted(folder.glob("*.safetensors")), config.quantization_config)
