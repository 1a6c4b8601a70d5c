"""A checkpoint that transformers loads without this package: in its own `bitnet` format, or in floats."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.quantizers_utils import should_convert_module
from transformers.utils.quantization_config import BitNetQuantConfig

from ..evaluation.score_record import carry_record
from ..files.model_folder import check_output, replace_model
from ..files.weight_files import find_weight_files
from ..modeling.companions import carry_card, carry_settings
from ..modeling.config_note import remove_note
from ..modeling.model_heads import auto_class, head_of
from ..modeling.pack import float32_names, packed_dtype
from ..nn import BitLinear, TernaryLinear
from ..quantization import dequantize_table, effective_weight, packed_rows, unpack_ternary
from ..runtime.students import Student
from .errors import UnsupportedExportError
from .transformers_form import Form, find_form, is_packable, ternary_layers


logger = logging.getLogger(__name__)

LinearClass = Literal["autobitlinear", "bitlinear"]
LINEAR_CLASSES = ("autobitlinear", "bitlinear")


def export_transformers(
    model_id: str | os.PathLike,
    output: str | os.PathLike,
    *,
    dense: bool = False,
    linear_class: LinearClass = "autobitlinear",
    dtype: str | torch.dtype | None = None,
    max_shard_size: str = "50GB",
    **hub: Any,
) -> PreTrainedConfig:
    """Write a student so that transformers alone loads it, with tokenizer, generation settings and card.

    | student | what is written |
    |---|---|
    | a Llama, Mistral or Qwen2 with SubLNs before its output projections (`sub_norm="output"`) | `BitNetForCausalLM` |
    | SubLNs before all ternary layers (`sub_norm="all"`), any architecture | the same architecture, `use_rms_norm` |
    | no SubLNs (`sub_norm="none"`), any architecture | the same architecture |

    Ternary weights stay packed, 2 bits each, in the format that transformers calls "bitnet", unless `dense`. Those with a scale a row or group
    (or with rows that are no multiple of 4) that format holds as floats only; they compute the same, and a warning says how many there
    are. An "autobitlinear" model computes in the dtype that it was written in, whatever `dtype` is given to `from_pretrained`; 16 bits round
    scales and activations, `dtype="float32"` here computes what this library does.

    Args:
        model_id: folder or Hub id of a student, packed or not, or of a BitNet checkpoint in a format of transformers.
        output: folder to write; an older model there is replaced when the new one is complete.
        dense: the effective weights in ordinary linear layers, no quantisation left: for programs that know no "bitnet". Activations are not
            rounded to 8 bits then, so its logits differ a little.
        linear_class: `"autobitlinear"` unpacks the weights once, when the model is loaded; `"bitlinear"` keeps 2 bits a weight in memory and
            unpacks them at every call, slowly.
        dtype: of what is not ternary, in which it computes; default: the student's own, or what [`hf_bitdistill.pack`] would give it;
            bfloat16 for a dense one.
        hub: options of `from_pretrained` of transformers (`revision`, `token`, ...).

    Returns:
        The config that was written.

    Raises:
        UnsupportedExportError: transformers has no such model; says why, and what to use instead.
        NotAStudentError: it is no ternary checkpoint.
        CheckpointError: a damaged file; names file and tensor.
        ValueError: an option has no meaning, or `output` is, lies in or contains the folder of the model.
        OSError: no such model.
    """
    model_id, folder = str(model_id), Path(output)
    if linear_class not in LINEAR_CLASSES:
        raise ValueError(f"linear_class={linear_class!r} is not supported; choose one of {LINEAR_CLASSES}.")
    check_output(folder, model=model_id)
    config = AutoConfig.from_pretrained(model_id, **hub)
    head = head_of(config)
    student = Student(config, find_weight_files(model_id, config, **hub), head)
    form = find_form(student, None if dense else linear_class)
    with torch.device("meta"):
        stock = auto_class(head).from_config(form.config)
    kept = _kept_modules(stock, student)
    target = _dtype(student, dense, dtype)
    written_dtype = target or student.model.dtype
    if form.small and written_dtype == torch.float16:
        raise UnsupportedExportError(
            "without SubLNs in front of all output projections BitNetForCausalLM needs numbers that float16 does not have: give dtype='bfloat16'."
        )
    try:
        floats = dict(student.offline_tensors(target, 32 if dense else 16 if student.needs_export else None))
        _widen_tables(floats, student, target)
    finally:
        student.files.close()
    tensors = _convert(floats, student, form, stock, None if dense else linear_class, written_dtype)
    _check_complete(tensors, stock, form, {} if dense else ternary_layers(student.model))
    if not dense:
        _warn_of_floats(ternary_layers(student.model), model_id)
    written = form.config
    remove_note(written)
    written.dtype = written_dtype
    if not dense:
        written.quantization_config = BitNetQuantConfig(
            modules_to_not_convert=kept,
            linear_class=linear_class,
            quantization_mode="offline",
            use_rms_norm=form.rms_norm_eps is not None,
            rms_norm_eps=form.rms_norm_eps,
        )
    with replace_model(folder) as staging:
        save_torch_state_dict(tensors, staging, max_shard_size=max_shard_size, metadata={"format": "pt"})
        written.save_pretrained(staging)
        carry_settings(model_id, staging, **hub)
        carry_card(model_id, staging, _note(written, None if dense else linear_class), **hub)
        if not dense:
            carry_record(model_id, staging)
    return written


def _dtype(student: Student, dense: bool, dtype: str | torch.dtype | None) -> torch.dtype | None:
    """What floats are written in, `None`: as they are stored."""
    if dtype is None and not dense and not student.needs_export:
        return None
    return packed_dtype(dtype or ("bfloat16" if dense else None), 16, student.config.quantization_config)


def _kept_modules(stock: PreTrainedModel, student: Student) -> list[str]:
    """The linear layers that transformers must leave alone."""
    ternary = ternary_layers(student.model)
    modules = dict(stock.named_modules())
    for name in ternary:
        if name not in modules:
            raise UnsupportedExportError(
                f"{type(stock).__name__} of transformers has no {name}: the experts of a mixture are one tensor there, and separate here."
            )
    linears = {name for name, module in modules.items() if isinstance(module, nn.Linear)}
    kept = sorted(linears - ternary.keys())
    if wrong := {name for name in linears if should_convert_module(name, kept)} ^ (linears & ternary.keys()):
        raise UnsupportedExportError(
            f"transformers takes {min(wrong)} for a layer of another name that stays in floats."
        )
    return kept


def _widen_tables(tensors: dict[str, Tensor], student: Student, target: torch.dtype | None) -> None:
    """Embedding and head in floats, where they are stored in integers."""
    ternary = {f"{name}.weight" for name in ternary_layers(student.model)}
    for name in [name for name in tensors if f"{name}_scale" in tensors and name not in ternary]:
        stored = student.stored_form(name)
        if stored is not None:
            table = dequantize_table(tensors[name], tensors.pop(f"{name}_scale"), stored.columns)
            tensors[name] = table.to(target or stored.dtype)


def _convert(
    floats: dict[str, Tensor],
    student: Student,
    form: Form,
    stock: PreTrainedModel,
    linear_class: LinearClass | None,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """The tensors of the checkpoint, by their names there, from those of our offline form, which are used up.

    Args:
        dtype: of what is made here.
    """
    tensors = {form.names.get(name, name): tensor for name, tensor in floats.items()}
    floats.clear()
    ternary = ternary_layers(student.model)
    for name, factor in form.factors.items():
        for tensor in (f"{name}.weight_scale" if name in ternary else f"{name}.weight", f"{name}.bias"):
            if tensor in tensors:
                tensors[tensor] = (tensors[tensor].float() * factor).to(tensors[tensor].dtype)
    for name, layer in ternary.items():
        weight, scale, bias = (f"{name}.{part}" for part in ("weight", "weight_scale", "bias"))
        module = stock.get_submodule(name)
        if linear_class is not None and not isinstance(module, nn.Linear):
            raise UnsupportedExportError(
                f"{name} is a {type(module).__name__}, which transformers' bitnet method leaves in floats: use --dense."
            )
        if linear_class is None or not is_packable(layer):
            codes = unpack_ternary(tensors[weight], layer.out_features)
            value = effective_weight(codes, tensors.pop(scale), layer.group_size).to(dtype)
            tensors[weight] = value.T.contiguous() if isinstance(module, Conv1D) else value
            if linear_class is not None:
                tensors[scale] = torch.ones(1)
        elif linear_class == "bitlinear":
            tensors[scale] = 1.0 / tensors[scale]
        elif bias in tensors:  # its scale multiplies the bias too
            tensors[bias] = (tensors[bias].float() / tensors[scale]).to(tensors[bias].dtype)
    # transformers does not change the dtype of what goes through the conversion of this format, be it packed or not.
    kept = float32_names(stock, dtype)
    for name, held in tensors.items():
        if held.is_floating_point() and not name.endswith(".weight_scale") and not kept(name):
            tensors[name] = held.to(dtype)
    tensors |= {name: torch.full((length,), value, dtype=dtype) for name, (length, value) in form.constants.items()}
    return tensors


def _check_complete(
    tensors: dict[str, Tensor], stock: PreTrainedModel, form: Form, ternary: dict[str, BitLinear | TernaryLinear]
) -> None:
    """Every tensor of the model is there and has its shape, and there are no others."""
    expected = {name: tuple(tensor.shape) for name, tensor in stock.state_dict().items()}
    for name, layer in ternary.items():
        if is_packable(layer):
            expected[f"{name}.weight"] = (packed_rows(layer.out_features), layer.in_features)
        expected[f"{name}.weight_scale"] = (1,)
        if form.rms_norm_eps is not None:
            expected[f"{name}.rms_norm.weight"] = (layer.in_features,)
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(expected.keys() | found.keys()):
        if found.get(name) != expected.get(name) and not (name in stock.all_tied_weights_keys and name not in found):
            raise UnsupportedExportError(
                f"tensor {name!r}: {type(stock).__name__} of transformers has {expected.get(name, 'none')}, the student "
                f"{found.get(name, 'none')}."
            )


def _warn_of_floats(ternary: dict[str, BitLinear | TernaryLinear], model_id: str) -> None:
    floats = [name for name, layer in ternary.items() if not is_packable(layer)]
    if floats:
        layer = ternary[floats[0]]
        logger.warning(
            f"{model_id}: {len(floats)} of {len(ternary)} ternary matrices are written as floats, because transformers packs those with one scale "
            f"a matrix and rows in multiples of 4 (such as {floats[0]}: a scale a {layer.weight_granularity}, {layer.out_features} rows). They "
            "compute the same."
        )


def _note(config: PreTrainedConfig, linear_class: LinearClass | None) -> str:
    name = auto_class(head_of(config)).__name__
    how = "" if linear_class is not None else " --dense"
    note = f"**transformers alone loads this copy**: `{name}.from_pretrained`, no `import hf_bitdistill`. It was written by "
    note += f"`bitdistill export transformers{how}`, and what is said of loading below is about the student that it was made from."
    if linear_class is None:
        note += " Its ternary weights are floats, and its activations are not rounded to 8 bits: where the student rounds them, logits differ a little."
    elif linear_class == "autobitlinear":
        note += f" It computes in {str(config.dtype).removeprefix('torch.')}: leave `dtype` out."
    return note
