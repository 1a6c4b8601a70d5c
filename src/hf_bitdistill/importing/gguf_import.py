"""`import_gguf`: a ternary model in a GGUF file as a packed student."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..config import FILE_WEIGHT_BITS, BitNetConfig
from ..files.disk_room import check_room
from ..files.model_folder import replace_model
from ..files.tensor_headers import CheckpointError
from ..gguf_format.tensor_names import FREQUENCIES
from ..modeling.offline_files import write_offline
from ..modeling.pack import check_weight_bits, float32_names, packed_dtype
from ..modeling.surgery import convert_modules
from ..nn import TernaryLinear
from ..quantization import exact_dtype, least_lossy_dtype, quantize_table
from .activation_cost import ActivationCost, keep_answers
from .block_scales import common
from .gguf_config import config_of, generation_config_of, graph_of, read_frequencies
from .gguf_reading import GgufFile
from .gguf_tensors import GgufTensors
from .gguf_tokenizer import TokenizerError, tokenizer_of


@dataclass(frozen=True)
class GgufImport:
    """What [`import_gguf`] wrote.

    Attributes:
        quantization: the student's options.
        kept: linear layer that is not ternary in the file, and so stays in full precision -> the type it has there.
        tokenizer_error: why no tokenizer was written; `None`: one was.
        cost: of rounding the activations to 8 bits, of a model that was not made for it.
    """

    quantization: BitNetConfig
    kept: dict[str, str]
    tokenizer_error: str | None
    cost: ActivationCost | None


def import_gguf(
    file: str | os.PathLike,
    output: str | os.PathLike,
    activation_bits: int | None = 8,
    dtype: str | torch.dtype | None = None,
    table_bits: int = 16,
    weight_bits: float = FILE_WEIGHT_BITS,
    max_shard_size: str = "50GB",
    tokenizer: PreTrainedTokenizerBase | None = None,
    answers: bool = True,
) -> GgufImport:
    """Write the ternary model of a GGUF file as a packed student. Codes and scales are those of the file, exactly.

    Args:
        file: of the architectures llama, qwen2, qwen3 or bitnet, with linear layers of the types TQ1_0, TQ2_0 or Q2_0 (blocks of 64 or 128
            weights). Those of other types stay in full precision.
        output: folder to write; a model that is in it is replaced.
        activation_bits: 8, what the kernels and the native decoder compute with; `None` keeps activations in floats, as weight-only models
            expect, which torch computes, slowly.
        dtype, table_bits: of norms, biases and layers in full precision, and of embedding and output head; see [`hf_bitdistill.pack`].
            Default: float32, and the 16-bit dtype that changes the tables least.
        weight_bits: of a ternary weight in the files that are written, 1.6 or 2.
        tokenizer: in place of the file's.
        answers: whether to load the student afterwards and keep what it answers beside it, for `bitdistill verify`.

    Raises:
        CheckpointError: damaged, no GGUF file, or a model that is not understood (architecture, type, rotation, key); names file and tensor.
        ValueError: an option has no meaning.
        OSError: no room, or the folder cannot be written.
    """
    source = GgufFile(file)
    config = config_of(source)
    tensors = GgufTensors(source, graph_of(source), config)
    if FREQUENCIES in tensors.names:
        read_frequencies(source, config, tensors.floats(FREQUENCIES).numpy())
    linear = [name for name in tensors.names if name.endswith("_proj.weight")]
    kept = {name.removesuffix(".weight"): tensors.type_of(name) for name in linear if not tensors.is_ternary(name)}
    if len(kept) == len(linear):
        types = ", ".join(sorted(set(kept.values()))) or "no linear layer"
        raise CheckpointError(f"{source.path}: holds no ternary matrix ({types}): it is no ternary model.")
    options = BitNetConfig(
        quantization_mode="offline",
        sub_norm=graph_of(source).sub_norm,
        sub_norm_eps=config.rms_norm_eps or 1e-6,
        activation_bits=activation_bits,
        modules_to_not_convert=sorted(kept) or None,
    )
    check_weight_bits(weight_bits)
    target = packed_dtype(dtype or "float32", table_bits, options)
    model = _meta_model(config, options)
    _check_complete(model, tensors)
    check_room(output, {"the imported model": _size(model, table_bits, weight_bits, target)})
    try:
        own = tokenizer or tokenizer_of(source)
        problem = None
    except TokenizerError as error:
        own, problem = None, str(error)

    packed = _packed_tensors(model, tensors, options)
    packed.update(_float_tensors(model, tensors, target, table_bits, packed))
    options.table_bits, options.weight_bits = min(table_bits, 16), weight_bits
    config.dtype, config.quantization_config = target, options
    cost = None
    with replace_model(output) as folder:
        write_offline(folder, packed, config, max_shard_size, model)
        del packed
        generation_config_of(source, config).save_pretrained(folder)
        if own is not None:
            own.save_pretrained(folder)
        if answers:
            cost = keep_answers(folder, own, compare=activation_bits is not None and options.sub_norm == "none")
    return GgufImport(options, kept, problem, cost)


def _meta_model(config: PreTrainedConfig, options: BitNetConfig) -> PreTrainedModel:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    convert_modules(model, options)
    return model


def _check_complete(model: PreTrainedModel, tensors: GgufTensors) -> None:
    """Compare names and shapes with the student's.

    Raises:
        CheckpointError: naming the tensor.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name, module in model.named_modules():
        if isinstance(module, TernaryLinear):
            expected[f"{name}.weight"] = (module.out_features, module.in_features)
            del expected[f"{name}.weight_scale"]
    for name, shape in expected.items():
        if name in tensors.names:
            found = tensors.tensor(name).shape
            if found != shape:
                raise CheckpointError(f"{tensors.place(name)} has the shape {list(found)}, expected {list(shape)}.")
        elif name not in model.all_tied_weights_keys:
            raise CheckpointError(f"{tensors.file.path}: has no tensor for {name!r}.")
    for name in tensors.names:
        scales = name.endswith(".scale") and f"{name.removesuffix('scale')}weight" in expected
        if name not in expected and not scales and name != FREQUENCIES:
            raise CheckpointError(
                f"{tensors.place(name)} has no place in this model ({name!r}): nothing was imported."
            )


def _size(model: PreTrainedModel, table_bits: int, weight_bits: float, dtype: torch.dtype) -> int:
    """About the bytes of the student."""
    tables, size = _tables(model), 0
    for name, tensor in model.state_dict().items():
        codes = tensor.dtype == torch.uint8  # (four to a byte)
        bits = table_bits if name in tables else 4 * weight_bits if codes else 8 * dtype.itemsize
        size += math.ceil(tensor.numel() * bits / 8)
    return size


def _tables(model: PreTrainedModel) -> set[str]:
    """Names of the tensors of embedding and output head."""
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    return {f"{name}.weight" for name, module in model.named_modules() if module in layers}


def _packed_tensors(model: PreTrainedModel, tensors: GgufTensors, options: BitNetConfig) -> dict[str, Tensor]:
    """Codes and scales of all ternary layers; `options` gets the granularity that says them exactly."""
    names = [name for name, module in model.named_modules() if isinstance(module, TernaryLinear)]
    packed, scales = {}, {}
    for name in names:
        matrix = tensors.ternary(f"{name}.weight")
        packed[f"{name}.weight"], scales[name] = matrix.packed, matrix.scales
    options.weight_granularity, options.group_size = common(list(scales.values()))
    for name in names:
        packed[f"{name}.weight_scale"] = scales.pop(name).at(options.weight_granularity, options.group_size)
    return packed


def _float_tensors(
    model: PreTrainedModel, tensors: GgufTensors, dtype: torch.dtype, table_bits: int, done: Iterable[str]
) -> Iterator[tuple[str, Tensor]]:
    """All tensors that are not in `done`, as they are stored.

    Raises:
        CheckpointError: a value is not finite, or too large for what it shall be stored in; names the tensor.
    """
    kept, tables, done = float32_names(model, dtype), _tables(model), set(done)
    for name in model.state_dict():
        if name in done or name not in tensors.names:
            continue
        if name in tables:
            yield from _table(name, tensors, dtype, table_bits)
            continue
        value = tensors.floats(name).to(torch.float32 if kept(name) else dtype)
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{tensors.place(name)}: a value is too large for {dtype}.")
        yield name, value


def _table(name: str, tensors: GgufTensors, dtype: torch.dtype, bits: int) -> Iterator[tuple[str, Tensor]]:
    if bits in (8, 4):
        try:
            pieces = [quantize_table(piece, bits) for piece in tensors.float_pieces(name)]
        except CheckpointError:
            raise
        except ValueError as error:
            raise CheckpointError(f"{tensors.place(name)}: {error}.") from None
        codes, scale = (torch.cat(parts) for parts in zip(*pieces, strict=True))
        yield name, codes
        yield f"{name}_scale", scale
        return
    if bits == 32:
        value = tensors.floats(name)
        yield name, value.to(exact_dtype(value))
        return
    stored = dtype if dtype.itemsize == 2 else least_lossy_dtype(tensors.float_pieces(name))
    value = torch.cat([piece.to(stored) for piece in tensors.float_pieces(name)])
    if not torch.isfinite(value).all():
        raise CheckpointError(f"{tensors.place(name)}: a value is too large for {stored}.")
    yield name, value
