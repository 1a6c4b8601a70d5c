"""How many weights a student has, however few bits they are stored in."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from ..nn import QuantizedEmbedding, QuantizedHead, TernaryLinear


def count_parameters(model: PreTrainedModel, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
    """Weights of a student, on any device: packed ones, and those of tables of few bits, one each. It is the same number before and after
    packing; scales are not counted.

    Args:
        only_trainable: without packed weights, and what else has no gradient.
        exclude_embeddings: without embedding tables, and heads that are tied to them.
    """
    total, seen = 0, set()
    for module in model.modules():
        is_embedding = isinstance(module, (nn.Embedding, QuantizedEmbedding))
        if isinstance(module, TernaryLinear):
            total += 0 if only_trainable else module.in_features * module.out_features
        elif isinstance(module, (QuantizedEmbedding, QuantizedHead)) and id(module.table) not in seen:
            seen.add(id(module.table))
            excluded = only_trainable or (is_embedding and exclude_embeddings)
            total += 0 if excluded else module.table.rows * module.table.columns
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            excluded = (only_trainable and not parameter.requires_grad) or (is_embedding and exclude_embeddings)
            total += 0 if excluded else _weights(module, name, parameter)
    return total


def _weights(module: Any, name: str, parameter: Tensor) -> int:
    if parameter.is_floating_point() and name != "weight_scale":
        return parameter.numel()
    # A table as its checkpoint holds it, before it is loaded.
    if name != "weight":
        return 0
    is_embedding = isinstance(module, nn.Embedding)
    rows = module.num_embeddings if is_embedding else module.out_features
    return rows * (module.embedding_dim if is_embedding else module.in_features)
