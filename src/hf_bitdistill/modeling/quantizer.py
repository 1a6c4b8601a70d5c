"""The transformers quantizer behind `from_pretrained`: the only file that knows the library's loading hooks.

- full-precision checkpoint + `BitNetConfig` -> trainable online student (SubLNs start at one);
- online checkpoint -> the same student, resumed;
- offline checkpoint -> packed model.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils import logging

from .._compat import add_optional_names, forget_quantization, set_weight_conversions, weight_conversions
from ..config import QUANT_METHOD, BitNetConfig
from ..files.tensor_headers import CheckpointError, TensorHeader
from ..files.weight_files import EXPLICIT_NAME, warn_of_stale_files
from ..nn import BitLinear, SubLN
from ..quantization import exact_dtype
from .checkpoint import (
    check_headers,
    check_loaded,
    check_packed_layers,
    check_projections,
    read_headers,
    safetensors_files,
)
from .config_note import remove_note
from .conversions import TransposeConv1D, convert_when_saved, has_separate_experts, loading_operation
from .digests import check_digests
from .lm_head import expect_stored_tables, finish_stored_tables, head_is_quantized, quantize_head, tables_on_cpu
from .own_mapping import OwnMapping
from .preflight import check_before_building, check_built, check_locations
from .saving import save_safely
from .source_dtype import dtype_in_files
from .surgery import Projection, convert_modules, find_projections


logger = logging.get_logger(__name__)


def _owner(model: PreTrainedModel, tensor_name: str) -> torch.nn.Module:
    return model.get_submodule(tensor_name.rpartition(".")[0])


def _check_whole(model: PreTrainedModel) -> None:
    """Refuse a model whose parameters were split or put elsewhere while it was loaded."""
    for name, parameter in model.named_parameters():
        # (Attributes of what FSDP2 and of what DeepSpeed shards.)
        sharded = hasattr(parameter, "device_mesh") or hasattr(parameter, "ds_id")
        if sharded or parameter.device.type == "meta":
            where = "sharded" if sharded else "offloaded"
            raise NotImplementedError(
                f"{name!r} was {where} while loading, but a student with experts is made of a whole model in memory: load it on the "
                "CPU, save_pretrained it, and load that checkpoint instead."
            )


def _with_small_tables(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The state dict of a packed model, its float32 tables in 16 bits where those hold every value ([`pack`] sees to that): they are float32
    in memory because the model computes in one dtype."""
    state_dict = model.state_dict()
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    tables = {id(layer.weight): layer.weight for layer in layers if isinstance(layer, (nn.Embedding, nn.Linear))}
    small = {
        key: table.detach().to(exact_dtype(table.detach()))
        for key, table in tables.items()
        if table.dtype == torch.float32 and table.device.type != "meta"
    }
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in small and name in state_dict:
            state_dict[name] = small[id(parameter)]
    return state_dict


class BitDistillQuantizer(HfQuantizer):
    """Loads BitNet students; `quant_method` "bitdistill". Registered by `import hf_bitdistill`."""

    requires_calibration = False
    quantization_config: BitNetConfig

    def __init__(self, quantization_config: BitNetConfig, **kwargs):
        super().__init__(quantization_config, **kwargs)
        self._headers: dict[str, TensorHeader] = {}
        self._from_memory = False
        self._separate_experts = False
        self._projections: list[Projection] = []
        self._convert_after_loading = False
        self._unchecked: PreTrainedConfig | None = None
        self._source_dtype: str | None = None
        self._table_dtype: torch.dtype | None = None

    @property
    def online(self) -> bool:
        return self.quantization_config.quantization_mode == "online"

    def validate_environment(self, *args, **kwargs) -> None:
        if not self.pre_quantized and not self.online:
            raise ValueError(
                "A full-precision checkpoint cannot be loaded with quantization_mode='offline': load it online, train "
                "it, and call hf_bitdistill.pack(model)."
            )

    def update_attn_implementation(self, config: PreTrainedConfig) -> PreTrainedConfig:
        """The only hook that is given the config before a model is built from it."""
        config = super().update_attn_implementation(config)
        if not check_before_building(config):
            self._unchecked = config
        return config

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The last hook before the model is built: what comes from the Hub has been downloaded by now."""
        if self._unchecked is not None:
            check_before_building(self._unchecked)
            self._unchecked = None
        return super().update_dtype(dtype)

    def _process_model_before_weight_loading(self, model: PreTrainedModel, checkpoint_files=None, **kwargs) -> None:
        distributed = getattr(model.config, "distributed_config", None)
        if any(getattr(distributed, size, None) not in (None, 1) for size in ("tp_size", "ep_size")):
            raise NotImplementedError(
                "Tensor parallelism splits the input of output projections, over which a SubLN normalises; neither it nor expert "
                "parallelism is supported for BitNet students."
            )
        files = safetensors_files(checkpoint_files)
        check_locations(model.config.name_or_path or "", files)
        if files:
            check_built(model, files)
        self._projections = find_projections(model, self.quantization_config)
        # A model with fused experts is loaded as it is: transformers knows all forms that they have in files.
        self._convert_after_loading = not self.pre_quantized and any(p.fused_in for p in self._projections)
        if not self._convert_after_loading:
            convert_modules(model, self.quantization_config, self._projections)
        if not self.online and self.quantization_config.table_bits != 16:
            self._table_dtype = cast(nn.Embedding, model.get_input_embeddings()).weight.dtype
            expect_stored_tables(model, self.quantization_config.table_bits)
        self._separate_experts = has_separate_experts(model)
        self._check_files(model, checkpoint_files)
        if not self.pre_quantized:
            # They are not in a full-precision checkpoint; that is no news worth a warning.
            add_optional_names(model, [r"\.rms_norm\.weight$"])

    def _check_files(self, model: PreTrainedModel, checkpoint_files) -> None:
        files = safetensors_files(checkpoint_files)
        self._from_memory = not checkpoint_files
        if self.pre_quantized:
            if len(files) != len(checkpoint_files or ()):
                raise CheckpointError(f"{checkpoint_files[0]}: a BitNet student's checkpoint must be safetensors.")
            if files:
                self._headers = read_headers(model, files)
                check_headers(model, self._headers, may_add_head=self.online)
                check_digests(files, self.quantization_config)
                warn_of_stale_files(files)
        elif files:
            headers = read_headers(model, files)
            self._source_dtype = dtype_in_files(files)
            check_digests(files, None)
            warn_of_stale_files(files)
            # Where an architecture's checkpoints are converted while loading, names say nothing yet.
            if not any(isinstance(entry, WeightConverter) for entry in get_model_conversion_mapping(model)):
                check_projections(model, headers, dict.fromkeys(p.fused_in or p.name for p in self._projections))

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **kwargs) -> bool:
        if self.pre_quantized or not param_name.endswith(".weight"):
            return False
        module = _owner(model, param_name)
        return isinstance(module, BitLinear) and module.transposed_source

    def get_quantize_ops(self) -> ConversionOps:
        return TransposeConv1D()

    def update_weight_conversions(self, weight_conversions, *args, **kwargs):
        # (Newer versions of transformers give the model too.)
        conversions = [] if self._separate_experts else weight_conversions
        return super().update_weight_conversions(conversions, *args, **kwargs)

    def get_weight_conversions(self) -> list[WeightConverter]:
        """For every tensor that the architecture's own converters leave."""
        mapping = OwnMapping(lambda: self._headers)
        operation = loading_operation(self.quantization_config, mapping) if self.pre_quantized else None
        return [] if operation is None else [WeightConverter(["weight"], "weight", [operation])]

    def update_parallel_plan(self, model: PreTrainedModel, plan: dict[str, str]) -> None:
        """No plan is extended: tensor parallelism is refused."""

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs) -> PreTrainedModel:
        # How the files are named is no part of the model.
        model.config.__dict__.pop(EXPLICIT_NAME, None)
        remove_note(model.config)
        if self.pre_quantized and self._from_memory:
            check_loaded(model)
        if not self.online:
            check_packed_layers(model, self._headers)
            if self._table_dtype is not None:
                self._finish_tables(model, self._table_dtype)
            model.requires_grad_(False)
            self._quantize_head(model)
            convert_when_saved(model)
            save_safely(model)
            return model
        if self._convert_after_loading:
            _check_whole(model)
            convert_modules(model, self.quantization_config, self._projections)
        if not self.pre_quantized:
            for module in model.modules():
                if isinstance(module, SubLN):
                    torch.nn.init.ones_(module.weight)
        # An online student is an ordinary trainable model. With a quantizer attached, save_pretrained would ignore the
        # state dict that FSDP and DeepSpeed gather and hand to it, and `.float()` and `.half()` would be refused.
        config, conversions = model.config.quantization_config, weight_conversions(model)
        self.remove_quantization_config(model)
        if not self.pre_quantized:
            config = copy.deepcopy(config)  # (the caller's, who may make another student with it)
            config.source_dtype = self._source_dtype
        model.config.quantization_config = config
        # Newer versions remove the architecture's conversions too, which belong to its checkpoints, not to the quantizer.
        if conversions is not None:
            set_weight_conversions(model, conversions)
        convert_when_saved(model)
        forget_quantization(model)
        save_safely(model)
        return model

    def _finish_tables(self, model: PreTrainedModel, dtype: torch.dtype) -> None:
        try:
            finish_stored_tables(model, dtype)
        except ValueError as error:
            name, _, problem = str(error).partition(" ")
            header = self._headers.get(name)
            where = f"{header.file}: tensor {header.key!r}" if header else f"tensor {name!r}"
            raise CheckpointError(f"{where} {problem}.") from None

    def _quantize_head(self, model: PreTrainedModel) -> None:
        bits = self.quantization_config.head_bits
        if bits == 16:
            return
        if tables_on_cpu(model):
            quantize_head(model, bits)
        else:
            logger.warning(f"head_bits={bits} works on CPUs only: the embedding and the output head stay as stored.")

    def get_state_dict_and_metadata(self, model: PreTrainedModel):
        """Called first by `save_pretrained`.

        Raises:
            ValueError: the model's float tables are gone.
        """
        if head_is_quantized(model):
            raise ValueError(
                f"{type(model).__name__} has an embedding and output head of {self.quantization_config.head_bits} bits in "
                "memory; its float tables, which a checkpoint holds, were freed. Copy the checkpoint it was loaded from, or "
                "load that with head_bits=16 and save. To have others load it like this, set head_bits in its config.json; to have it "
                "stored like this, pack the student with table_bits."
            )
        return None if self.online else _with_small_tables(model), {}

    def _dequantize(self, model: PreTrainedModel, dtype: torch.dtype | None = None) -> PreTrainedModel:
        from .dequantization import dequantize_model  # (which knows `pack`, which knows this class)

        return dequantize_model(model, dtype or model.dtype)

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        """Gradients pass through packed layers too: to adapters beside them."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        return self.online


# A second import of this module (an interactive reload) must not fail on "already registered".
if QUANT_METHOD in AUTO_QUANTIZER_MAPPING:
    AUTO_QUANTIZER_MAPPING[QUANT_METHOD] = BitDistillQuantizer
else:
    register_quantizer(QUANT_METHOD)(BitDistillQuantizer)
