"""A saved LoRA adapter as what the native decoder adds to its projections."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..runtime import LowRank


# Options of a LoraConfig with which an adapter is more than products of low rank beside projections -> what they are when it is not.
_PLAIN = {
    "use_dora": False,
    "bias": "none",
    "lora_bias": False,
    "modules_to_save": None,
    "trainable_token_indices": None,
    "target_parameters": None,
    "layer_replication": None,
    "alora_invocation_tokens": None,
    "use_qalora": False,
    "use_bdlora": None,
    "arrow_config": None,
    "kasa_config": None,
    "monteclora_config": None,
}
_PREFIX, _A, _B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"


class AdapterError(ValueError):
    """An adapter is damaged, does not belong to the model, or is of a kind that cannot be applied."""


def load_low_rank(adapter: str | os.PathLike, shapes: Mapping[str, tuple[int, int]], **hub: Any) -> dict[str, LowRank]:
    """Read an adapter that PEFT saved.

    Args:
        adapter: folder or Hub id.
        shapes: rows and columns of each projection that can have one, by its module's name.
        hub: `revision`, `token`, ... of an id.

    Raises:
        AdapterError: names the option, or the tensor.
    """
    from peft import PeftConfig
    from peft.utils import load_peft_weights

    adapter = os.fspath(adapter)
    try:
        config = PeftConfig.from_pretrained(adapter, **hub)
        tensors = load_peft_weights(adapter, device="cpu", **hub)
    except (ValueError, KeyError, OSError) as error:
        raise AdapterError(f"{adapter} is no adapter that can be read: {error}") from error
    _check_config(adapter, config)
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        end = next((end for end in (_A, _B) if key.endswith(end)), None)
        if end is None or not key.startswith(_PREFIX):
            raise AdapterError(f"{adapter}: the native decoder has no place for the tensor {key!r}.")
        name = key[len(_PREFIX) : -len(end)]
        if name not in shapes:
            raise AdapterError(
                f"{adapter}: {name!r} is no projection of this model (adapters of embeddings, output heads and routers cannot be applied by "
                "the native decoder)."
            )
        pairs.setdefault(name, {})[end] = tensor
    if not pairs:
        raise AdapterError(f"{adapter} has no tensors.")
    return {name: _low_rank(adapter, name, pair, shapes[name], config) for name, pair in pairs.items()}


def _check_config(adapter: str, config: Any) -> None:
    from peft import LoraConfig

    from .lora import STARTS

    if not isinstance(config, LoraConfig):
        raise AdapterError(f"{adapter} is a {config.peft_type} adapter: the native decoder applies LoRA.")
    for name, plain in _PLAIN.items():
        value = getattr(config, name, plain)
        if value != plain and value:
            raise AdapterError(f"{adapter}: the native decoder cannot apply an adapter with {name}={value!r}.")
    if config.init_lora_weights not in STARTS:
        raise AdapterError(
            f"{adapter}: it was trained with init_lora_weights={config.init_lora_weights!r} on a base weight that a part was taken out of."
        )


def _low_rank(adapter: str, name: str, pair: dict[str, Tensor], shape: tuple[int, int], config: Any) -> LowRank:
    from peft.utils.other import get_pattern_key

    for end in (_A, _B):
        if end not in pair:
            raise AdapterError(f"{adapter}: there is no tensor {_PREFIX + name + end!r}.")
        if not torch.isfinite(pair[end]).all():
            raise AdapterError(
                f"{adapter}: tensor {_PREFIX + name + end!r} is not finite (it has a NaN or an infinity)."
            )
    a, b = pair[_A].float(), pair[_B].float()
    rank = config.rank_pattern.get(get_pattern_key(config.rank_pattern.keys(), name), config.r)
    alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern.keys(), name), config.lora_alpha)
    rows, columns = shape
    if a.shape != (rank, columns) or b.shape != (rows, rank):
        raise AdapterError(
            f"{adapter}: the tensors of {name!r} are {list(a.shape)} and {list(b.shape)}, not [{rank}, {columns}] and [{rows}, {rank}]: it is "
            "the adapter of another model, or its config is not its own."
        )
    scaling = alpha / (math.sqrt(rank) if config.use_rslora else rank)
    return LowRank(a.contiguous(), (b * scaling).T.contiguous())


def together(adapters: Sequence[Mapping[str, LowRank]]) -> dict[str, LowRank]:
    """Several adapters as one: their changes add up."""
    names = list(dict.fromkeys(name for adapter in adapters for name in adapter))
    parts = {name: [adapter[name] for adapter in adapters if name in adapter] for name in names}
    return {
        name: some[0]
        if len(some) == 1
        else LowRank(torch.cat([part.a for part in some]), torch.cat([part.b for part in some]))
        for name, some in parts.items()
    }
