"""From a packed student back to floats: `model.dequantize()` of transformers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .._compat import forget_quantization
from ..nn import QuantizedEmbedding, QuantizedHead, SubNormLinear, TernaryLinear
from ..nn.carried_adapters import adapted_modules
from ..quantization import effective_weight
from .lm_head import restore_ties
from .pack import float32_names
from .saving import save_plainly
from .surgery import SurgeryError


# Rows of a table that are looked up at a time.
_ROWS = 8192


def dequantize_model(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Replace the ternary layers of a packed student, in place, by linear layers of their effective weights `gamma * W_t`.

    What is computed is the same but for two roundings: activations are no longer rounded to 8 bits, and weights are rounded to `dtype`.
    SubLNs stay where they were, inside of [`SubNormLinear`]; without any, the model is an ordinary one of its architecture. Tables of few
    bits become floats. All parameters are trainable.

    Args:
        model: a packed student, all of it in memory.
        dtype: of all parameters but those that transformers keeps in float32.

    Returns:
        `model`.

    Raises:
        SurgeryError: it carries adapters (PEFT); a layer was offloaded; or the embedding is of few bits and scaled by its architecture. The
            model is as it was.
    """
    if adapted := adapted_modules(model):
        raise SurgeryError(
            f"dequantize takes the student itself, and {adapted[0]} carries an adapter (PEFT): peft_model.unload().dequantize() is the student "
            "without it; hf_bitdistill.merge_adapter(peft_model, requantize=True) makes it a part of the ternary weights first, with a loss."
        )
    layers = {name: module for name, module in model.named_modules() if isinstance(module, TernaryLinear)}
    for name, layer in layers.items():
        if layer.weight.device.type == "meta":
            raise SurgeryError(f"{name} was offloaded: load the model into memory to dequantise it.")
    _check_embedding(model)
    for name, layer in layers.items():
        model.set_submodule(name, _linear(layer, dtype))
    _dequantize_tables(model, dtype)
    kept = float32_names(model, dtype)
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(torch.float32 if kept(name) else dtype)
    model.config.dtype = dtype
    forget_quantization(model)
    first = next((name for name, layer in layers.items() if layer.rms_norm is not None), None)
    save_plainly(
        model,
        first
        and f"a float model with SubLNs (such as that of {first}) is no architecture that from_pretrained builds, and would load without them: "
        "keep the packed student, or write it with hf_bitdistill.export.export_transformers(..., dense=True).",
    )
    return model.requires_grad_(True)


def _linear(layer: TernaryLinear, dtype: torch.dtype) -> nn.Linear:
    weight = effective_weight(layer.unpack(), layer.weight_scale, layer.group_size).to(dtype)
    bias = None if layer.bias is None else layer.bias.detach().to(dtype)
    if layer.rms_norm is not None:
        return SubNormLinear(weight, bias, layer.rms_norm).train(layer.training)
    with torch.device("meta"):
        linear = nn.Linear(layer.in_features, layer.out_features, bias is not None)
    linear.weight = nn.Parameter(weight)
    linear.bias = None if bias is None else nn.Parameter(bias)
    return linear.train(layer.training)


def _check_embedding(model: PreTrainedModel) -> None:
    embedding = model.get_input_embeddings()
    if isinstance(embedding, QuantizedEmbedding) and embedding.is_scaled:
        raise SurgeryError(
            f"the embedding of {type(model).__name__} is scaled by its architecture, and of {embedding.table.bits} bits: load the checkpoint "
            "with head_bits=16, or one that was packed with table_bits=16."
        )


def _dequantize_tables(model: PreTrainedModel, dtype: torch.dtype) -> None:
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if not isinstance(embedding, QuantizedEmbedding):
        return
    floats = nn.Embedding.from_pretrained(_floats(embedding, dtype), freeze=False)
    tied = isinstance(head, QuantizedHead) and head.table is embedding.table
    model.set_input_embeddings(floats)
    if isinstance(head, QuantizedHead):
        with torch.device("meta"):
            linear = nn.Linear(head.in_features, head.out_features, head.bias is not None)
        linear.weight = floats.weight if tied else nn.Parameter(_floats(head, dtype))
        linear.bias = head.bias  # type: ignore[assignment]  # torch says Parameter where there may be none
        model.set_output_embeddings(linear)
    restore_ties(model, tied)


def _floats(layer: QuantizedEmbedding | QuantizedHead, dtype: torch.dtype) -> Tensor:
    """The table of a layer, `[R, C]`."""
    device = layer.table.weight.device
    starts = range(0, layer.table.rows, _ROWS)
    pieces = (torch.arange(start, min(start + _ROWS, layer.table.rows), device=device) for start in starts)
    return torch.cat([layer.table.lookup(ids).to(dtype) for ids in pieces])
