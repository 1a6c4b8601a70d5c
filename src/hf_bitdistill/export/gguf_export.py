"""A student as one GGUF file for llama.cpp and the programs built on it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from ..files.weight_files import find_weight_files, folder_of
from ..gguf_format import Q2_0
from ..hub.cards.base_model_id import base_model_id, license_of
from ..modeling.locate import find_model
from ..modeling.model_heads import is_classifier
from ..runtime.students import Student
from .errors import UnsupportedExportError
from .exported_file import ExportedFile
from .gguf_encoding import TABLE_TYPES, TERNARY_TYPES
from .gguf_models import INSTEAD, FileModel, file_model
from .gguf_plan import PlannedTensor, TensorPlan
from .gguf_vocabulary import read_vocabulary
from .gguf_writing import check_file, names_by_type, write_file


def export_gguf(
    model: str | os.PathLike,
    output: str | os.PathLike,
    type: str = "tq2_0",
    table: str = "q8_0",
    *,
    allow_q2_0: bool = True,
    pre_tokenizer: str | None = None,
    name: str | None = None,
    **hub: Any,
) -> ExportedFile:
    """Write a ternary student as a GGUF file that llama.cpp computes.

    One tensor is read at a time, and written in pieces; a file that is in the way is replaced when the new one is complete.

    Args:
        model: folder or Hub id of a student, packed or in training, or of a ternary model in a format of transformers.
        output: the file, `.gguf`.
        type: how ternary matrices are stored: `"tq2_0"` (2.06 bits a weight), `"tq1_0"` (1.69), `"q2_0"` (2.25) or `"f16"`. Rows that are no multiple of
            the 256 weights of a block of the first two, and scales for groups, go to Q2_0, whose blocks have 64; what does not fit
            there either goes to Q4_0 or F16. The result lists them.
        table: how embedding and head are stored: `"q8_0"`, `"q6_k"`, `"q4_0"` or `"f16"`.
        allow_q2_0: whether to use Q2_0 for these. Without it Q4_0 takes its place, with the same weights: twice as large, known to every llama.cpp,
            and faster where that has no kernels for Q2_0 (x86, as of version 0.3.36 of llama-cpp-python).
        pre_tokenizer: name of llama.cpp's pre-tokenizer; default: the one that is the tokenizer's.
        name: of the model, in the file; default: from `model`.
        hub: options of `from_pretrained` of transformers (`revision`, `token`, ...).

    Raises:
        UnsupportedExportError: llama.cpp has no architecture, vocabulary or type for it; says what to use instead.
        NotAStudentError: it is no ternary checkpoint.
        CheckpointError: a damaged file; names file and tensor.
        ValueError: an unknown option, two that contradict each other, or `output` does not end in `.gguf`.
        OSError: no such model, or `output` cannot be written.
    """
    if type not in TERNARY_TYPES:
        raise ValueError(f"type {type!r} is not supported; choose {', '.join(TERNARY_TYPES)}.")
    if table not in TABLE_TYPES:
        raise ValueError(f"table {table!r} is not supported; choose {', '.join(TABLE_TYPES)}.")
    block, file_type = TERNARY_TYPES[type]
    if block is Q2_0 and not allow_q2_0:
        raise ValueError(
            "type='q2_0' asks for what allow_q2_0=False (--no_q2_0) excludes: give type='tq2_0', whose place q4_0 takes where rows do not fit, or "
            "allow Q2_0."
        )

    def plan(student: Student, found: FileModel) -> TensorPlan:
        return TensorPlan(student, found, block, TABLE_TYPES[table], allow_q2_0)

    return export_file(model, output, plan, file_type, pre_tokenizer, name, **hub)


def export_file(
    model: str | os.PathLike,
    output: str | os.PathLike,
    plan: Callable[[Student, FileModel], TensorPlan],
    file_type: int,
    pre_tokenizer: str | None = None,
    name: str | None = None,
    **hub: Any,
) -> ExportedFile:
    """Write a GGUF file of any kind.

    Args:
        plan: how the tensors of a student are stored.
        file_type: what `general.file_type` says.

    Other arguments, result and errors: see [`export_gguf`].
    """
    output = Path(output).expanduser()
    check_file(output)
    model = find_model(os.fspath(model), **hub)
    config = AutoConfig.from_pretrained(model, **hub)
    if is_classifier(config):
        raise UnsupportedExportError(f"{model} is a classifier; only language models are exported. {INSTEAD}")
    student = Student(config, find_weight_files(model, config, **hub))
    try:
        found = file_model(student.model)
        vocabulary = read_vocabulary(
            _tokenizer(model, **hub), found.spec.vocab_size, _end_ids(model, config, **hub), pre_tokenizer
        )
        planned = plan(student, found)
        write_file(output, found, vocabulary, planned.tensors, file_type, _general(model, student, name))
    except UnsupportedExportError as error:
        raise UnsupportedExportError(f"{model}: {error}") from None
    finally:
        student.files.close()
    return ExportedFile(
        path=output,
        architecture=found.graph.name,
        size=output.stat().st_size,
        types=list(names_by_type(planned.tensors)),
        fallbacks=_fallbacks(planned.tensors),
        scale_error=planned.scale_error,
        notes=[*found.notes, *vocabulary.notes, *_slow(planned.tensors)],
        layers=len(found.spec.layers),
    )


def _fallbacks(tensors: list[PlannedTensor]) -> dict[str, tuple[str, str]]:
    return {each.tensor.name: (each.kind.name, each.reason) for each in tensors if each.reason}


def _slow(tensors: list[PlannedTensor]) -> list[str]:
    count = sum(each.kind.number == Q2_0.number for each in tensors)
    if not count:
        return []
    return [
        f"{count} tensors are Q2_0, for which llama.cpp (llama-cpp-python 0.3.36) has kernels on ARM and none on x86: --no_q2_0 (Q4_0, the same "
        "weights in more bytes) is several times as fast there"
    ]


def _tokenizer(model: str, **hub: Any) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(model, **hub)
    except OSError:
        raise
    except Exception as error:  # of any kind, and naming no file
        line = " ".join(str(error).split())
        raise ValueError(f"{model}: its tokenizer cannot be read ({error.__class__.__name__}: {line})") from error


def _end_ids(model: str, config: PreTrainedConfig, **hub: Any) -> list[int]:
    """Which tokens end an answer, by the generation settings."""
    try:
        ends = GenerationConfig.from_pretrained(model, **hub).eos_token_id
    except OSError:  # it has none
        ends = getattr(config, "eos_token_id", None)
    return [] if ends is None else list(ends) if isinstance(ends, (list, tuple)) else [ends]


def _general(model: str, student: Student, name: str | None) -> dict[str, Any]:
    """What the file says of the model as a whole."""
    folder = folder_of(next(iter(student.files.headers.values())).file)
    local = Path(model).is_dir()
    if name is None and local:
        # A run's folder is called after its content, its parent after the run.
        path = Path(model).resolve()
        name = f"{path.parent.name}-{path.name}" if path.name in ("packed", "student") else path.name
    return {
        "name": name or model.rpartition("/")[2],
        "description": "a ternary (1.58-bit) student made with hf-bitdistill",
        "license": license_of(str(folder)),
        "base_model": base_model_id(folder),
    }
