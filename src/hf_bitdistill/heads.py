"""`quantize_head`: the embedding table and the output head of a packed model, from floats to 8 or 4 bits in memory."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from .layers import QuantizedEmbedding, QuantizedHead, QuantizedTable
from .surgery import SurgeryError, student_config


def quantize_head(model: PreTrainedModel, bits: int = 8) -> PreTrainedModel:
    """Replace the float tables of a packed model, embedding and output head, by 8-bit or 4-bit ones, in place.

    In a small packed model the float tables are most of what is read for each token. Tied ones go on sharing one table.
    The float tables are freed, so the model can no longer be saved: keep the checkpoint it came from. A checkpoint whose
    config says `head_bits` is treated like this by `from_pretrained`.

    Args:
        model: a packed (offline) student on a CPU.
        bits: 8 (one scale a row) or 4 (one scale for 32 columns).

    Returns:
        `model`.

    Raises:
        SurgeryError: `model` is no packed student, its tables are quantised already or not on a CPU, or its embedding or
            head is a layer that does more than look up or multiply.
        ValueError: `bits` is neither 8 nor 4, or a table holds a value that is not finite.
    """
    if bits not in (8, 4):
        raise ValueError(f"bits={bits!r}: the tables can have 8 or 4 bits")
    config = student_config(model)
    if config.quantization_mode != "offline":
        raise SurgeryError(f"{type(model).__name__} is a student in training: pack it first.")
    if head_is_quantized(model):
        raise SurgeryError(f"The tables of {type(model).__name__} are quantised already.")
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    scale = getattr(embedding, "embed_scale", None)
    _check(embedding, head, scale)

    dtype = embedding.weight.dtype
    tied = head is not None and head.weight is embedding.weight
    try:
        table = QuantizedTable(embedding.weight, bits)
        head_table = table if tied or head is None else QuantizedTable(head.weight, bits)
    except ValueError as error:
        raise ValueError(f"{type(model).__name__}: embedding or output head: {error}") from None
    model.set_input_embeddings(QuantizedEmbedding(table, dtype, scale))
    if head is not None:
        model.set_output_embeddings(QuantizedHead(head_table, head.bias))
    # There are no two parameters left to tie; transformers would look for them by name.
    model._tied_weights_keys = None
    model.all_tied_weights_keys = {}
    config.head_bits = bits
    model.config.quantization_config = config
    return model.eval()


def head_is_quantized(model: nn.Module) -> bool:
    """Whether [`quantize_head`] was applied to `model`."""
    return any(isinstance(module, QuantizedTable) for module in model.modules())


def tables_on_cpu(model: PreTrainedModel) -> bool:
    """Whether the embedding and the head of `model` are where [`quantize_head`] can take them."""
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    return all(layer is None or layer.weight.device.type == "cpu" for layer in layers)


@torch.no_grad()
def _check(embedding: nn.Module, head: nn.Module | None, scale) -> None:
    """Refuse layers that compute something else than the quantised ones would."""
    for layer, kind in ((embedding, nn.Embedding), (head, nn.Linear)):
        if layer is None and kind is nn.Linear:
            continue
        if not isinstance(layer, kind):
            raise SurgeryError(f"{type(layer).__name__} is no {kind.__name__}: its table cannot be quantised.")
        if layer.weight.device.type != "cpu":
            raise SurgeryError(f"The table of {type(layer).__name__} is on {layer.weight.device}, not on a CPU.")
    # By trial, because embedding layers of some architectures are subclasses with a forward of their own.
    probe = torch.arange(min(2, embedding.num_embeddings))
    plain = embedding.weight[probe] if scale is None else embedding.weight[probe] * torch.as_tensor(scale)
    if not torch.allclose(embedding(probe).float(), plain.float(), rtol=1e-2):
        raise SurgeryError(f"{type(embedding).__name__} does more than look up rows: its table cannot be quantised.")
    if head is not None and type(head).forward is not nn.Linear.forward:
        raise SurgeryError(f"{type(head).__name__} does more than multiply: its table cannot be quantised.")
