"""Writing a GGUF file: metadata first, then each tensor in pieces."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np

from ..files.atomic import file_aside
from ..files.disk_room import check_room, check_writable
from .gguf_models import FileModel
from .gguf_plan import PlannedTensor
from .gguf_vocabulary import Vocabulary


if TYPE_CHECKING:
    from gguf import GGUFWriter


_METADATA_BYTES = 32 << 20  # a vocabulary of 256 thousand tokens with its merges has 15 MB


def check_file(path: Path) -> None:
    """Refuse a place where no GGUF file can or should be written.

    Raises:
        ValueError: its name does not end in `.gguf`, so that it could be a file of a model.
        OSError: it cannot be written.
    """
    if path.suffix != ".gguf":
        raise ValueError(f"the file to write must end in .gguf, not {path.name!r}")
    check_writable(path, is_file=True)


def write_file(
    path: Path,
    model: FileModel,
    vocabulary: Vocabulary,
    tensors: list[PlannedTensor],
    file_type: int,
    general: dict[str, Any],
) -> None:
    """Write a file, in place of another one of that name when it is complete.

    Args:
        general: `name`, `description`, `license`, `base_model` (an id on the Hub); those that are known.

    Raises:
        OSError: no room.
        CheckpointError: the content of a tensor is damaged; nothing was written.
        UnsupportedExportError: a value does not fit its type; nothing was written.
    """
    import gguf

    path.parent.mkdir(parents=True, exist_ok=True)
    with file_aside(path) as aside:
        # (What a killed writer left is gone by now.)
        check_room(path.parent, {"the file": sum(each.size for each in tensors) + _METADATA_BYTES})
        writer = gguf.GGUFWriter(aside, model.graph.name)
        try:
            _add_general(writer, general, file_type)
            _add_model(gguf, writer, model)
            _add_vocabulary(writer, vocabulary)
            for each in tensors:
                # (With any type but uint8 the shape is taken as it is; the number of the type may be one that the package does not know.)
                number: Any = each.kind.number
                writer.add_tensor_info(each.tensor.name, each.tensor.shape, np.dtype(np.int8), each.size, number)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for each in tensors:
                writer.write_tensor_data(cast(Any, _Stream(each)))
        finally:
            writer.close()


class _Stream:
    """A tensor as [`GGUFWriter.write_tensor_data`] takes it, of which a piece is in memory at a time."""

    def __init__(self, planned: PlannedTensor):
        self.nbytes, self._planned = planned.size, planned

    def tofile(self, file: BinaryIO) -> None:
        written = 0
        for piece in self._planned.write():
            file.write(piece.data)
            written += piece.nbytes
        if written != self.nbytes:
            raise RuntimeError(f"{self._planned.tensor.name}: {written} bytes, {self.nbytes} expected")

    def byteswap(self, inplace: bool = False) -> _Stream:
        return self  # bytes already in the order of the file


def _add_general(writer: GGUFWriter, general: dict[str, Any], file_type: int) -> None:
    writer.add_type("model")
    for key, add in (
        ("name", writer.add_name),
        ("description", writer.add_description),
        ("license", writer.add_license),
    ):
        if general.get(key):
            add(general[key])
    if base := general.get("base_model"):
        writer.add_base_model_count(1)
        writer.add_base_model_name(0, base.rpartition("/")[2])
        writer.add_base_model_organization(0, base.rpartition("/")[0])
        writer.add_base_model_repo_url(0, f"https://huggingface.co/{base}")
    writer.add_tags(["ternary", "bitnet", "hf-bitdistill"])
    writer.add_file_type(file_type)
    writer.add_quantization_version(2)


def _add_model(gguf: Any, writer: GGUFWriter, model: FileModel) -> None:
    spec = model.spec
    writer.add_vocab_size(spec.vocab_size)
    writer.add_context_length(model.context)
    writer.add_embedding_length(spec.hidden_size)
    writer.add_block_count(len(spec.layers))
    writer.add_feed_forward_length(spec.intermediate_size)
    writer.add_head_count(spec.heads)
    writer.add_head_count_kv(spec.kv_heads)
    writer.add_key_length(spec.head_dim)
    writer.add_value_length(spec.head_dim)
    writer.add_layer_norm_rms_eps(spec.final_norm.eps)
    writer.add_rope_dimension_count(spec.head_dim)
    writer.add_rope_freq_base(model.rope_base)
    if model.rope_factor != 1.0:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(model.rope_factor)


def _add_vocabulary(writer: GGUFWriter, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.scores is not None:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.merges is not None:
        writer.add_token_merges(vocabulary.merges)
    for name, index in vocabulary.ids.items():
        getattr(writer, f"add_{name}_token_id")(index)
    for name, value in vocabulary.flags.items():
        writer.add_bool(f"tokenizer.ggml.{name}", value)
    template: Any = vocabulary.chat_template
    if isinstance(template, dict):
        template = [{"name": name, "template": text} for name, text in template.items()]
    if template:
        writer.add_chat_template(template)


def names_by_type(tensors: list[PlannedTensor]) -> Iterator[tuple[str, int, int, str]]:
    """Type, number of tensors, bytes, and why that type, of each group of a file's tensors; the largest first."""
    groups: dict[tuple[str, str], list[PlannedTensor]] = {}
    for each in tensors:
        groups.setdefault((each.kind.name, each.reason), []).append(each)
    for (kind, reason), group in sorted(groups.items(), key=lambda item: -sum(each.size for each in item[1])):
        yield kind, len(group), sum(each.size for each in group), reason
