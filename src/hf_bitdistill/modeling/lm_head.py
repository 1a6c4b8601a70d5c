"""The embedding table and the output head of a packed model, from floats to 8 or 4 bits: in memory (`quantize_head`), or for good, so that
its checkpoint holds them like this."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from .._compat import forget_tied_names, restore_tied_names
from ..nn import QuantizedEmbedding, QuantizedHead, QuantizedTable, StoredTable
from ..ops import TablePacker
from ..quantization import quantize_table, table_shapes
from .surgery import SurgeryError, student_config


_ROWS = 512 * TablePacker.ROWS


def _layers(model: PreTrainedModel) -> tuple[Any, Any]:
    """Embedding and output head, of whatever classes; `None` where there is no head."""
    return model.get_input_embeddings(), model.get_output_embeddings()


def quantize_head(model: PreTrainedModel, bits: int = 8) -> PreTrainedModel:
    """Replace the tables of a packed model, embedding and output head, by 8-bit or 4-bit ones, in place.

    In a small packed model the float tables are most of what is read for each token. Tied ones go on sharing one table.
    The float tables are freed, so the model can no longer be saved: keep the checkpoint it came from, or pack with `table_bits`, which
    stores such tables. A checkpoint whose config says `head_bits` is treated like this by `from_pretrained`.

    Args:
        model: a packed (offline) student on a CPU. One whose tables are stored with `bits` or fewer stays as it is.
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
    embedding, head = _layers(model)
    stored = isinstance(embedding, QuantizedEmbedding)
    if stored:
        if embedding.table.bits <= bits:
            return model
        if not tables_on_cpu(model):
            raise SurgeryError(f"The table of {type(embedding).__name__} is not on a CPU.")
        tied = head is not None and head.table is embedding.table
        table = _fewer_bits(embedding.table, bits)
        head_table = table if tied or head is None else _fewer_bits(head.table, bits)
        embedding.table = table
        if head is not None:
            model.set_output_embeddings(QuantizedHead(head_table, head.bias, tied))
    else:
        check_tables(model)
        tied = head is not None and head.weight is embedding.weight
        try:
            table = QuantizedTable(embedding.weight, bits)
            head_table = table if tied or head is None else QuantizedTable(head.weight, bits)
        except ValueError as error:
            raise ValueError(f"{type(model).__name__}: embedding or output head: {error}") from None
        scale = getattr(embedding, "embed_scale", None)
        model.set_input_embeddings(QuantizedEmbedding(table, embedding.weight.dtype, scale))
        if head is not None:
            model.set_output_embeddings(QuantizedHead(head_table, head.bias, tied))
        forget_ties(model)
    config.head_bits = bits
    model.config.quantization_config = config
    return model.eval()


def _fewer_bits(table: StoredTable, bits: int) -> QuantizedTable:
    packer = TablePacker(table.rows, table.columns, bits)
    for start in range(0, table.rows, _ROWS):
        packer.add(table.dequantized(slice(start, start + _ROWS)))
    return QuantizedTable.of_packed(packer.packed(), table.rows, table.columns, bits)


def forget_ties(model: PreTrainedModel) -> None:
    """Of a model whose embedding and head are no parameters any more."""
    forget_tied_names(model)
    model.all_tied_weights_keys = {}


def restore_ties(model: PreTrainedModel, tied: bool) -> None:
    """Undo [`forget_ties`], of a model whose embedding and head are parameters again.

    Args:
        tied: whether they are one.
    """
    restore_tied_names(model)
    model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True) if tied else {}


def head_is_quantized(model: nn.Module) -> bool:
    """Whether [`quantize_head`] changed `model`."""
    return any(isinstance(module, QuantizedTable) for module in model.modules())


def tables_on_cpu(model: PreTrainedModel) -> bool:
    """Whether the embedding and the head of `model` are where [`quantize_head`] can take them."""
    layers = _layers(model)
    weights = [
        layer.table.weight if hasattr(layer, "table") else layer.weight for layer in layers if layer is not None
    ]
    return all(weight.device.type == "cpu" for weight in weights)


@torch.no_grad()
def check_tables(model: PreTrainedModel) -> None:
    """Refuse an embedding or a head that computes something else than the quantised one would.

    Raises:
        SurgeryError: it does, or it is not on a CPU.
    """
    embedding, head = _layers(model)
    check_table_layers(model)
    for layer in (embedding, head):
        if layer is not None and layer.weight.device.type != "cpu":
            raise SurgeryError(f"The table of {type(layer).__name__} is on {layer.weight.device}, not on a CPU.")
    # By trial, because embedding layers of some architectures are subclasses with a forward of their own.
    scale = getattr(embedding, "embed_scale", None)
    probe = torch.arange(min(2, embedding.num_embeddings))
    plain = embedding.weight[probe] if scale is None else embedding.weight[probe] * torch.as_tensor(scale)
    if not torch.allclose(embedding(probe).float(), plain.float(), rtol=1e-2):
        raise SurgeryError(f"{type(embedding).__name__} does more than look up rows: its table cannot be quantised.")
    if head is not None and type(head).forward is not nn.Linear.forward:
        raise SurgeryError(f"{type(head).__name__} does more than multiply: its table cannot be quantised.")


def check_table_layers(model: PreTrainedModel) -> None:
    """Refuse an embedding or a head that is no table.

    Raises:
        SurgeryError: naming its class.
    """
    for layer, kind in ((model.get_input_embeddings(), nn.Embedding), (model.get_output_embeddings(), nn.Linear)):
        if not isinstance(layer, kind) and not (layer is None and kind is nn.Linear):
            raise SurgeryError(f"{type(layer).__name__} is no {kind.__name__}: its table cannot be quantised.")


# ---- Tables that a checkpoint holds ---------------------------------------------------------------------------------


def stored_layers(model: PreTrainedModel, bits: int, dtype: torch.dtype) -> dict[nn.Module, nn.Module]:
    """Embedding and head of a model on tables that its checkpoint can hold, for those that it has.

    Args:
        model: what [`check_tables`] accepts.
        bits: 8 or 4.
        dtype: of everything else.

    Raises:
        ValueError: a value is not finite, or too large for 4 bits.
    """
    embedding, head = _layers(model)
    table = StoredTable(*quantize_table(embedding.weight.detach(), bits), embedding.embedding_dim)
    layers: dict[nn.Module, nn.Module] = {
        embedding: QuantizedEmbedding(table, dtype, getattr(embedding, "embed_scale", None))
    }
    if head is not None:
        tied = head.weight is embedding.weight
        own = table if tied else StoredTable(*quantize_table(head.weight.detach(), bits), head.in_features)
        layers[head] = QuantizedHead(own, None if head.bias is None else head.bias.to(dtype, copy=True), tied)
    return layers


def use_stored_layers(model: PreTrainedModel, layers: dict[nn.Module, nn.Module]) -> None:
    """Put layers of [`stored_layers`] in the place of those they were made of."""
    embedding, head = _layers(model)
    model.set_input_embeddings(layers.get(embedding, embedding))
    if head is not None:
        model.set_output_embeddings(layers.get(head, head))
    forget_ties(model)


def expect_stored_tables(model: PreTrainedModel, bits: int) -> None:
    """Give embedding and head of a model on the meta device the tensors that a checkpoint of `table_bits=bits` has for them: integers as
    their `weight`, and a `weight_scale`. transformers loads and ties these like any others; [`finish_stored_tables`] follows.

    Raises:
        SurgeryError: one of them is no table.
    """
    check_table_layers(model)
    embedding, head = _layers(model)
    names = {module: f"{name}." if name else "" for name, module in model.named_modules()}
    ties = dict(model.all_tied_weights_keys)
    tied = head is not None and ties.get(f"{names[head]}weight") == f"{names[embedding]}weight"
    for layer in (embedding, head):
        if layer is None:
            continue
        if layer is head and tied:
            layer.weight, layer.weight_scale = embedding.weight, embedding.weight_scale
            ties[f"{names[head]}weight_scale"] = f"{names[embedding]}weight_scale"
            continue
        rows, columns = layer.weight.shape
        shape, dtype, scale_shape, scale_dtype = table_shapes(rows, columns, bits)
        # (Parameters: transformers ties nothing else.)
        layer.weight = nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"), requires_grad=False)
        scale = torch.empty(scale_shape, dtype=scale_dtype, device="meta")
        layer.weight_scale = nn.Parameter(scale, requires_grad=False)
    model.all_tied_weights_keys = ties


def finish_stored_tables(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Make layers that compute of what was loaded into those of [`expect_stored_tables`].

    Args:
        dtype: of the embedding's output.

    Raises:
        NotImplementedError: a table was offloaded.
        ValueError: the content of a table is damaged; names the tensor.
    """
    embedding, head = _layers(model)
    table = _loaded_table(model, embedding, embedding.embedding_dim)
    scale = getattr(embedding, "embed_scale", None)
    layers: dict[nn.Module, nn.Module] = {embedding: QuantizedEmbedding(table, dtype, scale)}
    if head is not None:
        tied = head.weight is embedding.weight
        layers[head] = QuantizedHead(table if tied else _loaded_table(model, head, head.in_features), head.bias, tied)
    use_stored_layers(model, layers)


def _loaded_table(model: PreTrainedModel, layer: Any, columns: int) -> StoredTable:
    name = next(name for name, module in model.named_modules() if module is layer)
    if layer.weight.device.type == "meta":
        raise NotImplementedError(
            f"'{name}.weight', a table of few bits, was offloaded while loading: give a device_map that keeps it in memory."
        )
    table = StoredTable(layer.weight.detach(), layer.weight_scale.detach(), columns)
    try:
        table.check()
    except ValueError as error:
        tensor, _, problem = str(error).partition(" ")
        raise ValueError(f"{name}.{tensor} {problem}") from None
    return table
