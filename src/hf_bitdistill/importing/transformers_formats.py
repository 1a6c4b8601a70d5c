"""`import_transformers`: a BitNet checkpoint in a format of transformers, or its latent weights, as a packed student."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig

from ..config import FILE_WEIGHT_BITS, QUANT_METHOD, quant_method
from ..files.disk_room import check_room
from ..files.model_folder import check_output, replace_model
from ..files.tensor_headers import CheckpointError
from ..files.weight_files import find_weight_files
from ..modeling.companions import carry_settings
from ..modeling.model_heads import head_of
from ..nn import BitLinear
from ..runtime import NotAStudentError, Student
from ..runtime.matrices import place
from ..verify import keep_answers


logger = logging.getLogger(__name__)

# What the layers of a checkpoint that says nothing of them are, when its weights are known to be a BitNet's latent ones.
_LATENT = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}
# Rows of a matrix that tell latent weights from ternary ones.
_ROWS = 64


def import_transformers(
    model_id: str | Path,
    output: str | Path,
    latent: bool = False,
    dtype: str | None = None,
    table_bits: int = 16,
    weight_bits: float = FILE_WEIGHT_BITS,
    max_shard_size: str = "50GB",
    answers: bool = True,
    **hub: Any,
) -> None:
    """Write a BitNet model that others published as a packed student. Codes are those of the checkpoint, and so are scales.

    Args:
        model_id: folder or Hub id of a checkpoint whose `quant_method` is `"bitnet"` (microsoft/bitnet-b1.58-2B-4T and its bfloat16 master,
            HF1BitLLM/Llama3-8B-1.58-100B-tokens, Falcon-E, what onebitllms writes).
        output: folder to write; a model that is in it is replaced.
        latent: the checkpoint says nothing of a quantisation, and its linear layers hold the latent weights of a BitNet, which are made ternary
            by their mean magnitude (Falcon-E's revision "prequantized").
        dtype, table_bits: of what is not ternary, see [`hf_bitdistill.pack`].
        weight_bits: of a ternary weight in the files that are written, 1.6 or 2.
        answers: whether to load the student afterwards and keep what it answers beside it, for `bitdistill verify`.
        hub: options of `from_pretrained` of transformers (`revision`, `token`, ...).

    Raises:
        NotAStudentError: it is no ternary checkpoint, or one of this library.
        CheckpointError: a damaged file; names file and tensor.
        ValueError: an option has no meaning, or `output` is, lies in or contains the folder of the model.
        OSError: no such model, or no room.
    """
    check_output(output, model=model_id)
    config = AutoConfig.from_pretrained(model_id, **hub)
    _check_kind(model_id, config, latent)
    files = find_weight_files(model_id, config, **hub)
    if latent:
        config.quantization_config = dict(_LATENT)
    # (The publisher's own code, which is not used and does not come along.)
    config.__dict__.pop("auto_map", None)
    student = Student(config, files, head_of(config))
    if latent:
        _check_latent(student)
    check_room(output, {"the imported model": _size(student, weight_bits)})
    with replace_model(output) as folder:
        student.save(folder, max_shard_size, dtype, table_bits, weight_bits)
        tokenizer = carry_settings(model_id, folder, **hub)
    if answers:
        keep_answers(output, tokenizer)


def _size(student: Student, weight_bits: float) -> int:
    """About the bytes of the packed student: `weight_bits` for a ternary weight, two bytes for any other."""
    ternary = {f"{name}.weight" for name, module in student.model.named_modules() if isinstance(module, BitLinear)}
    return sum(
        math.ceil(tensor.numel() * weight_bits / 8)
        if name in ternary
        else tensor.numel() * min(2, tensor.element_size())
        for name, tensor in student.model.state_dict().items()
    )


def _check_kind(model_id: str | Path, config: PreTrainedConfig, latent: bool) -> None:
    method = quant_method(config)
    if method == QUANT_METHOD:
        raise NotAStudentError(f"{model_id} is a student of this library already: bitdistill pack packs it.")
    if latent and method is not None:
        raise ValueError(f"{model_id} says how it is quantised ({method!r}): import it without --latent.")
    if not latent and method is None:
        raise NotAStudentError(
            f"{model_id} is in full precision. If its weights are the latent ones of a BitNet (Falcon-E's revision 'prequantized'), import "
            "it with --latent; to make a ternary student of another model, train one (bitdistill run)."
        )


def _check_latent(student: Student) -> None:
    """Refuse ternary weights that are written out in floats: the mean magnitude of latent weights is not their scale.

    Raises:
        CheckpointError: naming file and tensor.
    """
    for name, module in student.model.named_modules():
        if isinstance(module, BitLinear):
            tensor = f"{name}.weight"
            _, rows = next(student.files.rows(tensor, _ROWS))
            magnitudes = rows[rows != 0].abs().float()
            if magnitudes.numel() and torch.equal(magnitudes.amin(), magnitudes.amax()):
                raise CheckpointError(
                    f"{place(student.files, tensor)} holds one magnitude and zeros: these are not latent weights, but ternary ones written "
                    "out in floats. Import the packed checkpoint, or the latent one."
                )
    student.files.close()
