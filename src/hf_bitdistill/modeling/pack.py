"""`pack`: online student -> offline model."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .._compat import names_in_float32
from ..config import FILE_WEIGHT_BITS, WEIGHT_BITS, BitNetConfig
from ..nn import BitLinear, TernaryLinear
from ..nn.carried_adapters import adapted_modules
from ..quantization import PackedWeightError, least_lossy_dtype
from .conversions import convert_when_saved
from .lm_head import check_tables, forget_ties, stored_layers, use_stored_layers
from .quantizer import BitDistillQuantizer
from .saving import save_safely
from .source_dtype import storage_dtype
from .surgery import SurgeryError, student_config


TABLE_BITS = (32, 16, 8, 4)


def pack(
    model: PreTrainedModel,
    inplace: bool = False,
    dtype: str | torch.dtype | None = None,
    table_bits: int = 16,
    weight_bits: float = FILE_WEIGHT_BITS,
) -> PreTrainedModel:
    """Pack the current weights of an online student into 2 bits each (1.6 in files), and the others into what its checkpoint shall hold, for inference.

    Args:
        model: an online student, as made by [`apply_bitnet`] or `from_pretrained`.
        inplace: replace the layers of `model` itself, which frees its latent weights; otherwise `model` stays as it is
            and everything that is not ternary is copied.
        dtype: of what is not ternary (norms, SubLNs, biases), `"bfloat16"`, `"float16"` or `"float32"`; default: that of the full-precision
            checkpoint which the student was made of, bfloat16 where it is not known. Scales of ternary weights are float32 always.
        table_bits: of the embedding and the output head. 16: floats, in `dtype`; if that is float32, rounded to the 16-bit dtype that
            changes them least. 8 or 4: integers, as [`quantize_head`] makes them, in memory and on disk. 32: float32, not rounded at all
            (`dtype` is float32 then by default).
        weight_bits: of a ternary weight in the files that `save_pretrained` writes. 1.6, five weights in a byte, unpacked while they are
            loaded; or 2, as in memory: a fifth more, which versions of this library before 1.6 bits read too.

    Returns:
        An offline model in eval mode, ready for `generate` and `save_pretrained`. Without `inplace` it shares no tensor
        with `model`.

    Raises:
        SurgeryError: `model` is not a student, is packed already, or carries adapters (PEFT); or its embedding or head is no table that can
            have 8 or 4 bits.
        PackedWeightError: a latent weight is not finite, or its codes are all equal; names the module. Or any other tensor
            (a SubLN, a norm, the embedding) is not finite, or too large for `dtype`; names the tensor.
        ValueError: `dtype`, `table_bits` or `weight_bits` is not supported.
    """
    if not isinstance(model, PreTrainedModel) or adapted_modules(model):
        raise SurgeryError(
            f"pack takes the student itself, not {type(model).__name__} with wrappers or adapters: save the adapter "
            "(peft_model.save_pretrained(folder)), pack(peft_model.unload()), and put it beside the packed model "
            "(PeftModel.from_pretrained(packed, folder)), which then computes the same; or hf_bitdistill.merge_adapter makes it a part of the "
            "weights, with a loss."
        )
    config = copy.deepcopy(student_config(model))
    layers = {name: module for name, module in model.named_modules() if isinstance(module, BitLinear)}
    if not layers:
        raise SurgeryError(f"{type(model).__name__} is packed already.")
    target = packed_dtype(dtype, table_bits, config)
    check_weight_bits(weight_bits)
    if table_bits in (8, 4):
        check_tables(model)
    _check_values(model, {f"{name}.weight" for name in layers}, target)
    config.quantization_mode, config.table_bits, config.source_dtype = "offline", min(table_bits, 16), None
    config.weight_bits = weight_bits

    packed = {}
    for name, layer in layers.items():
        try:
            packed[name] = TernaryLinear.from_bit_linear(layer, config)
        except PackedWeightError as error:
            raise PackedWeightError(f"{name}: latent weight {error}.") from None
        for parameter in packed[name].parameters():
            parameter.data = parameter.data.to(target)
        if inplace:
            model.set_submodule(name, packed[name])
    try:
        tables = stored_layers(model, table_bits, target) if table_bits in (8, 4) else {}
    except ValueError as error:
        raise PackedWeightError(f"the embedding or the output head: {error}.") from None
    replaced = {id(parameter) for layer in (*layers.values(), *tables) for parameter in layer.parameters()}
    floats = _stored_floats(model, replaced, target, round_tables=table_bits == 16)
    if inplace:
        for parameter, value in floats:
            parameter.data = value
        if tables:
            use_stored_layers(model, tables)
    else:
        # deepcopy takes an entry of its memo for the copy: nothing is duplicated that the packed model has in another form.
        memo: dict[int, object] = {id(layer): packed[name] for name, layer in layers.items()}
        memo |= {id(layer): table for layer, table in tables.items()}
        memo |= {id(parameter): nn.Parameter(value, requires_grad=False) for parameter, value in floats}
        model = copy.deepcopy(model, memo)
        if tables:
            forget_ties(model)

    for part in (model.config, *(getattr(model.config, name, None) for name in model.config.sub_configs)):
        if part is not None:
            part.dtype = target
    quantizer = BitDistillQuantizer(config, pre_quantized=True)
    # What transformers sets on a model that it loads, and does not declare.
    as_loaded: Any = model
    as_loaded.hf_quantizer = quantizer
    as_loaded.is_quantized = True
    as_loaded.quantization_method = config.quant_method
    model.config.quantization_config = config
    convert_when_saved(model)
    save_safely(model)
    return model.requires_grad_(False).eval()


def packed_dtype(dtype: str | torch.dtype | None, table_bits: int, config: BitNetConfig) -> torch.dtype:
    """What [`pack`] stores floats in.

    Raises:
        ValueError: a value is not supported, or the two contradict each other.
    """
    if table_bits not in TABLE_BITS:
        raise ValueError(f"table_bits={table_bits!r} is not supported; choose one of {TABLE_BITS}.")
    target = torch.float32 if dtype is None and table_bits == 32 else storage_dtype(dtype, config)
    if table_bits == 32 and target != torch.float32:
        raise ValueError(
            f"table_bits=32 keeps the tables in float32, which goes with dtype='float32', not with {dtype!r}."
        )
    return target


def check_weight_bits(weight_bits: float) -> None:
    """Refuse what no file holds a ternary weight in.

    Raises:
        ValueError: naming what there is.
    """
    if weight_bits not in WEIGHT_BITS:
        raise ValueError(f"weight_bits={weight_bits!r} is not supported; choose one of {WEIGHT_BITS}.")


def _stored_floats(
    model: PreTrainedModel, replaced: set[int], target: torch.dtype, round_tables: bool
) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Each parameter that is stored in floats, and a copy of it as it is stored."""
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    tables = {id(weight) for layer in layers if (weight := getattr(layer, "weight", None)) is not None}
    kept = float32_names(model, target)
    for name, parameter in model.named_parameters():
        if id(parameter) in replaced:
            continue
        value = parameter.detach()
        if round_tables and id(parameter) in tables and target == torch.float32:
            value = value.to(least_lossy_dtype([value]))
        yield parameter, value.to(torch.float32 if kept(name) else target, copy=True)


def float32_names(model: PreTrainedModel, target: torch.dtype) -> Callable[[str], bool]:
    """Whether transformers keeps a parameter of that name in float32 when it loads the model in `target`."""
    patterns = names_in_float32(model, target)
    if not patterns:
        return lambda name: False
    pattern = re.compile(rf"(^|\.)({'|'.join(map(re.escape, sorted(patterns)))})(\.|$)")
    return lambda name: pattern.search(name) is not None


def _check_values(model: PreTrainedModel, latent: set[str], target: torch.dtype) -> None:
    """Refuse a model that diverged, or that `target` cannot hold. Latent weights are checked as they are packed."""
    for name, tensor in model.state_dict().items():
        if name in latent or not tensor.is_floating_point() or tensor.is_meta or not tensor.numel():
            continue
        # (The extremes are NaN if any number is.)
        extremes = torch.stack(torch.aminmax(tensor))
        if not torch.isfinite(extremes).all():
            raise PackedWeightError(
                f"{name} is not finite (it has a NaN or an infinity): go back to a checkpoint from before the run diverged."
            )
        if not torch.isfinite(extremes.to(target)).all():
            raise PackedWeightError(f"{name} has a value that is too large for {target}: pack with dtype='bfloat16'.")
