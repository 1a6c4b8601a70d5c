"""Ternary checkpoints in every format that can be loaded, each layer in our offline form.

| format | weights | scale |
|---|---|---|
| bitdistill offline | packed, four or five in a byte | multiplies |
| bitdistill online | latent, packed while loading | absmean |
| transformers `bitnet`, `bitlinear` | packed | divides |
| transformers `bitnet`, `autobitlinear` offline (microsoft/bitnet-b1.58-2B-4T) | packed | multiplies, the bias too |
| transformers `bitnet`, `autobitlinear` online | latent | absmean |
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.quantizers.quantizers_utils import should_convert_module
from transformers.utils import CONFIG_NAME
from transformers.utils.quantization_config import BitNetQuantConfig

from ..config import FILE_WEIGHT_BITS, QUANT_METHOD, BitNetConfig
from ..files.model_folder import check_output, replace_model
from ..files.tensor_headers import CheckpointError, TensorHeader
from ..files.weight_files import EXPLICIT_NAME, folder_of, warn_of_stale_files
from ..modeling.checkpoint import check_headers, check_packed_layer, read_headers
from ..modeling.config_note import remove_note
from ..modeling.digests import check_digests
from ..modeling.lm_head import expect_stored_tables
from ..modeling.model_heads import auto_class
from ..modeling.offline_files import write_offline
from ..modeling.pack import check_weight_bits, float32_names, packed_dtype
from ..modeling.preflight import build_on_meta
from ..modeling.source_dtype import dtype_in_files
from ..modeling.surgery import convert_modules
from ..nn import BitLinear, TernaryLinear
from ..quantization import PackedWeightError, exact_dtype
from .matrices import StoredForm, load_table, place, round_table
from .tensor_files import TensorFiles


class NotAStudentError(ValueError):
    """A checkpoint holds no ternary model, or one that has to be exported first."""


class Student:
    """A ternary checkpoint.

    Args:
        config: of the checkpoint, with its `quantization_config`.
        files: its safetensors files.
        head: of [`hf_bitdistill.modeling.model_heads.HEADS`].

    Attributes:
        model: the model on the meta device, with [`BitLinear`] or [`TernaryLinear`] layers.
        config: `config` with the quantisation of the offline student.
        needs_export: whether the files are anything but our offline format.
        is_trainable: whether it is an online student of ours.
        head: as it was given.

    Raises:
        NotAStudentError: not a ternary checkpoint.
        CheckpointError: a file is damaged, or a tensor is missing or has a wrong shape or dtype.
    """

    def __init__(self, config: PreTrainedConfig, files: list[str], head: str = "causal_lm"):
        if not files:
            raise CheckpointError("the checkpoint has no safetensors file.")
        try:
            source, self._stock = _read_quantization(config)
        except ValueError as error:
            raise type(error)(f"{Path(files[0]).parent / CONFIG_NAME}: {error}") from None
        self.head = head
        self.is_trainable = self._stock is None and source.quantization_mode == "online"
        self.needs_export = self._stock is not None or self.is_trainable
        full_precision = copy.deepcopy(config)
        del full_precision.quantization_config
        self.model: PreTrainedModel = build_on_meta(auto_class(self.head), full_precision, files)
        if self._stock is not None:
            source.source_dtype = dtype_in_files(files)
            source.modules_to_not_convert = _kept_by_stock(self.model, self._stock, source)
        convert_modules(self.model, source)
        self._float_dtype = self.model.dtype
        if source.quantization_mode == "offline" and source.table_bits != 16:
            expect_stored_tables(self.model, source.table_bits)
        headers = read_headers(self.model, files)
        if self._stock is not None:
            _check_packed(self.model, headers)
        check_headers(self.model, headers, may_add_head=False)
        check_digests(files, None if self._stock is not None else source)
        warn_of_stale_files(files)
        self.files = TensorFiles(headers)
        self._settle_ties()
        self._offline = copy.deepcopy(source)
        self._offline.quantization_mode = "offline"
        self.config = offline_config(config, self._offline)

    def _settle_ties(self) -> None:
        """As transformers does: a tied tensor may be stored under either name, and two different ones are not tied, whatever the
        config says."""
        tied, headers = self.model.all_tied_weights_keys, self.files.headers
        for target, source in list(tied.items()):
            if target in headers and source not in headers:
                headers[source] = headers.pop(target)
            elif target in headers and not self.files.equal(target, source):
                tied.pop(target)
        self.files.close()

    def stored_form(self, table: str) -> StoredForm | None:
        """How the embedding or the head, by the name of its tensor, is stored in integers; `None`: in floats."""
        if f"{table}_scale" not in self.files.headers:
            return None
        layer = self.model.get_submodule(table.removesuffix(".weight"))
        columns = layer.embedding_dim if isinstance(layer, nn.Embedding) else cast(nn.Linear, layer).in_features
        return StoredForm(columns, self._float_dtype)

    def layer(self, name: str) -> TernaryLinear:
        """The packed layer of a ternary module. Some of its tensors may be views into the file.

        Raises:
            CheckpointError: its content cannot be that of a ternary layer; names tensor and file.
        """
        layer = cast("BitLinear | TernaryLinear", copy.deepcopy(self.model.get_submodule(name)))
        tensors = self.files.group(name)
        if isinstance(layer, BitLinear):
            layer.load_state_dict(tensors, assign=True)
            try:
                return TernaryLinear.from_bit_linear(layer, self._offline)
            except PackedWeightError as error:
                header = self.files.headers[f"{name}.weight"]
                raise CheckpointError(f"{header.file}: tensor {header.key!r} {error}.") from None
        scale = tensors["weight_scale"].float()
        if self._stock is not None and self._stock.linear_class == "bitlinear":
            scale = 1.0 / scale
        elif self._bias_is_scaled(layer) and "bias" in tensors:
            tensors["bias"] = _with_scale(tensors["bias"], scale)
        weight = layer.from_checkpoint(tensors["weight"])
        layer.load_state_dict({**tensors, "weight": weight, "weight_scale": scale}, assign=True)
        check_packed_layer(name, layer, self.files.headers)
        return layer

    def bias(self, name: str) -> Tensor:
        """The bias that a projection adds, which has one; it may be a view into the file, where a ternary one's may be in units of its scale."""
        bias = self.files.read(f"{name}.bias")
        if not self._bias_is_scaled(self.model.get_submodule(name)):
            return bias
        return _with_scale(bias, self.files.read(f"{name}.weight_scale").float())

    def _bias_is_scaled(self, layer: nn.Module) -> bool:
        packed = isinstance(layer, TernaryLinear)
        return packed and self._stock is not None and self._stock.linear_class != "bitlinear"

    def _tables(self) -> set[str]:
        """Names of the tensors of embedding and head, those that the files have."""
        layers = (self.model.get_input_embeddings(), self.model.get_output_embeddings())
        names = {f"{name}.weight" for name, module in self.model.named_modules() if module in layers}
        return names & self.files.headers.keys()

    def offline_tensors(
        self, dtype: torch.dtype | None = None, table_bits: int | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors of the offline checkpoint of this student, ternary weights with 2 bits each.

        Args:
            dtype, table_bits: see [`hf_bitdistill.pack`]; `None`: as they are stored.

        Raises:
            CheckpointError: a tensor's content is damaged, or too large for what it shall be stored in; names tensor and file.
        """
        tied, files, tables = self.model.all_tied_weights_keys, self.files, self._tables()
        integers = {tensor for name in tables if self.stored_form(name) for tensor in (name, f"{name}_scale")}
        floats = {name for name, _ in self.model.named_parameters(remove_duplicate=False)} - integers
        kept = float32_names(self.model, dtype) if dtype is not None else None

        def stored(name: str, tensor: Tensor) -> Tensor:
            if kept is None or name not in floats:
                return tensor.clone()
            value = tensor.to(torch.float32 if kept(name) else dtype, copy=True)
            if not torch.isfinite(value).all() and torch.isfinite(tensor).all():
                raise CheckpointError(f"{place(files, name)}: a value is too large for {dtype}.")
            return value

        inner = set()
        for name, module in self.model.named_modules():
            if isinstance(module, (BitLinear, TernaryLinear)):
                for key, tensor in self.layer(name).state_dict().items():
                    inner.add(f"{name}.{key}")
                    yield f"{name}.{key}", tensor.clone() if key == "weight" else stored(f"{name}.{key}", tensor)
        for name in self.model.state_dict():
            if name in inner or (name in tied and name not in files.headers):
                continue
            if name in tables - integers and table_bits in (8, 4):
                codes, scale = round_table(files, name, table_bits)
                yield name, codes
                yield f"{name}_scale", scale
            elif name in tables - integers and table_bits == 16 and dtype in (None, torch.float32):
                yield name, load_table(files, name, 16).data
            elif name in tables - integers and table_bits == 32:
                value = stored(name, files.read(name))
                yield name, value.to(exact_dtype(value))
            else:
                yield name, stored(name, files.read(name))

    def save(
        self,
        folder: Path,
        max_shard_size: str = "50GB",
        dtype: str | torch.dtype | None = None,
        table_bits: int | None = None,
        weight_bits: float | None = None,
    ) -> None:
        """Write the offline checkpoint of this student: weights and `config.json`, in place of a model that is in `folder`.

        Args:
            dtype, table_bits, weight_bits: see [`hf_bitdistill.pack`]. By default a packed checkpoint is written as it is stored, and any
                other as `pack` does by default.

        Raises:
            ValueError: `folder` is the one it is read from, or lies inside or around it; or an option is not supported.
            CheckpointError: a tensor's content is damaged or not finite; nothing was written.
        """
        for source in {folder_of(header.file) for header in self.files.headers.values()}:
            check_output(folder, model=source)
        offline, config, target = copy.deepcopy(self._offline), copy.deepcopy(self.config), None
        if self.needs_export:
            table_bits, weight_bits = table_bits or 16, weight_bits or FILE_WEIGHT_BITS
        if weight_bits is not None:
            check_weight_bits(weight_bits)
            offline.weight_bits = weight_bits
        if self.needs_export or dtype is not None or table_bits == 32:
            target = packed_dtype(dtype, table_bits or 16, offline)
        if table_bits is not None:
            if offline.table_bits not in (16, table_bits):
                raise ValueError(
                    f"the tables are stored with {offline.table_bits} bits, which cannot become {table_bits}: pack the student again."
                )
            offline.table_bits = min(table_bits, 16)
        if target is not None:
            config.dtype = target
        offline.source_dtype = None
        config.quantization_config = offline
        try:
            tensors = dict(self.offline_tensors(target, table_bits))
        finally:
            self.files.close()
        with replace_model(folder) as staging:
            write_offline(staging, tensors, config, max_shard_size, self.model)


def _check_packed(model: PreTrainedModel, headers: Mapping[str, TensorHeader]) -> None:
    """Refuse ternary matrices that are written out in floats: transformers computes with them, but their scales stand nowhere.

    Raises:
        NotAStudentError: naming file and tensor.
    """
    for name, layer in model.named_modules():
        header = headers.get(f"{name}.weight")
        if (
            isinstance(layer, TernaryLinear)
            and header is not None
            and header.dtype != "U8"
            and tuple(header.shape) == (layer.out_features, layer.in_features)
        ):
            raise NotAStudentError(
                f"{header.file}: tensor {header.key!r} is a ternary matrix that is written out in floats, as `bitdistill export transformers` does "
                "where it has a scale a row or a group: take the student that the checkpoint was made from."
            )


def _with_scale(bias: Tensor, scale: Tensor) -> Tensor:
    return (bias.float() * scale).to(bias.dtype)


def offline_config(config: PreTrainedConfig, quantization: BitNetConfig) -> PreTrainedConfig:
    """The config of a checkpoint, as that of its offline student."""
    config = copy.deepcopy(config)
    config.__dict__.pop(EXPLICIT_NAME, None)
    remove_note(config)
    config.quantization_config = quantization
    return config


def head_bits_of(config: PreTrainedConfig) -> int:
    """What a checkpoint's embedding and head become in memory where nobody says otherwise.

    Raises:
        NotAStudentError, ValueError: it is no ternary checkpoint.
    """
    return _read_quantization(config)[0].head_bits


def _read_quantization(config: PreTrainedConfig) -> tuple[BitNetConfig, BitNetQuantConfig | None]:
    """What the checkpoint holds, in our terms, and transformers' own description if it is one of its formats."""
    quantization: Any = getattr(config, "quantization_config", None)
    if quantization is not None and not isinstance(quantization, dict):
        quantization = quantization.to_dict()
    method = (quantization or {}).get("quant_method")
    if method == QUANT_METHOD:
        return BitNetConfig.from_dict(quantization), None
    if method != "bitnet":
        found = "it is in full precision" if method is None else f"it is quantised by {method!r}"
        raise NotAStudentError(f"not a ternary checkpoint: {found} (expected {QUANT_METHOD!r} or 'bitnet').")
    stock = BitNetQuantConfig.from_dict(quantization)
    packed = stock.linear_class == "bitlinear" or stock.quantization_mode == "offline"
    ours = BitNetConfig(
        quantization_mode="offline" if packed else "online",
        sub_norm="all" if stock.use_rms_norm else "none",
        sub_norm_eps=1e-6 if stock.rms_norm_eps is None else stock.rms_norm_eps,
    )
    return ours, stock


def _kept_by_stock(model: PreTrainedModel, stock: BitNetQuantConfig, ours: BitNetConfig) -> list[str] | None:
    """Linear layers that transformers leaves in full precision and we would not."""
    skip = stock.modules_to_not_convert or get_keys_to_not_convert(model)
    head = model.get_output_embeddings()
    linears = {name for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
    kept = sorted(name for name in linears if not should_convert_module(name, skip))
    return kept or None
