"""`BitNetConfig`: everything that decides what a ternary student looks like."""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Mapping
from typing import Any, Literal

from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, register_quantization_config
from transformers.utils.quantization_config import QuantizationConfigMixin


QUANT_METHOD = "bitdistill"

QuantizationMode = Literal["online", "offline"]
SubNormPlacement = Literal["output", "all", "none"]
WeightGranularity = Literal["tensor", "row", "group"]

#: Bits of a ternary weight in files, and those that it has there unless somebody says otherwise.
WEIGHT_BITS = (2, 1.6)
FILE_WEIGHT_BITS = 1.6
#: In which norms, biases and other floats of a packed student may be stored.
FLOAT_DTYPES = ("bfloat16", "float16", "float32")

_CHOICES = {
    "quantization_mode": ("online", "offline"),
    "sub_norm": ("output", "all", "none"),
    "weight_granularity": ("tensor", "row", "group"),
    "group_size": (64, 128),
    "activation_bits": (8, None),
    "head_bits": (16, 8, 4),
    "table_bits": (16, 8, 4),
    "weight_bits": WEIGHT_BITS,
    "source_dtype": (None, "float32", "bfloat16", "float16"),
    "surgery_version": (2, 1),
}


def _short(value: Any) -> str:
    """As `repr`, but a line whatever a file holds."""
    return reprlib.repr(value)


def quant_method(config: Any) -> str | None:
    """The quantisation method that a model's config names; `None`: it is in full precision."""
    quantization = getattr(config, "quantization_config", None)
    if quantization is None:
        return None
    get = quantization.get if isinstance(quantization, Mapping) else lambda key: getattr(quantization, key, None)
    method = get("quant_method")
    return getattr(method, "value", method)


def ternary_method(config: Any) -> str | None:
    """[`quant_method`], if it is a ternary one ("bitdistill" or transformers' "bitnet")."""
    method = quant_method(config)
    return method if method in (QUANT_METHOD, "bitnet") else None


class BitNetConfig(QuantizationConfigMixin):
    """Configuration of a BitNet b1.58 student, for `from_pretrained(..., quantization_config=BitNetConfig())`.

    Args:
        quantization_mode (`"online"` | `"offline"`): `"online"` keeps latent full-precision weights which are ternarised
            at every forward pass (trainable); `"offline"` holds packed ternary weights (inference only; `weight_bits` says how files hold them).
            A full-precision checkpoint can only be loaded `"online"`; use [`pack`] to go from one to the other.
        sub_norm (`"output"` | `"all"` | `"none"`): where a SubLN, an RMSNorm in front of the quantised projection, is
            put. `"output"`: before the output projections of attention and of the FFN (BitNet Distillation,
            arXiv 2510.13998, section 3.1); `"all"`: before every quantised projection (as in the authors' training
            configuration).
        sub_norm_eps (`float`): epsilon of the SubLNs.
        weight_granularity (`"tensor"` | `"row"` | `"group"`): what shares one absmean scale: the whole matrix (the
            paper), an output row, or `group_size` consecutive input columns of a row.
        group_size (`int`): 64 or 128; only used with `weight_granularity="group"`. The last group may be short.
        activation_bits (`int` | `None`): 8 for per-token absmax int8 activations (the paper), `None` for activations that
            stay in floating point (weight-only quantisation).
        modules_to_not_convert (`list[str]`, *optional*): names of modules that stay in full precision. An entry matches a
            module of that full name, everything below it, and any module whose name ends in `"." + entry`. The
            embeddings and the output head are never ternary (see `head_bits`).
        modules_without_sub_norm (`list[str]`, *optional*): names of projections that get no SubLN whatever `sub_norm` says, matched
            as in `modules_to_not_convert`. A SubLN bounds what it lets through: without it a ternary projection comes closer
            to a massive activation (see [`find_massive_projections`]), though not as close as one in full precision.
        projections (`dict[str, str | None]`, *optional*): what is to be added to the projections that are found automatically, experts
            included, or to be taken away: module name suffix -> `"input"`, `"output"` (the last projection of an attention or FFN
            block, the place of the SubLN) or `None` (stays in full precision), e.g. `{"attn.wqkv": "input", "attn.wo": "output"}`. The
            first entry that matches decides, before what was found.
        head_bits (`int`): what the embedding table and the output head of an *offline* checkpoint become in memory when it
            is loaded on a CPU: 16 leaves them as stored, 8 or 4 round them (see [`quantize_head`], which does the same
            to a loaded model: transformers ignores a `quantization_config` given for a checkpoint that has its own).
            Tables that are stored with as many bits or fewer stay as they are.
        table_bits (`int`): how the files of an *offline* checkpoint hold the embedding table and the output head: 16 in floats, 8 or 4 in
            integers with scales beside them. [`pack`] sets it. Versions of this library that know 16 only refuse such a checkpoint, because
            they do not know the option.
        weight_bits (`float`): how the files of an *offline* checkpoint hold a ternary weight: 2, four in a byte, as it is in memory; or 1.6, five
            in a byte, ten times smaller than 16 bits, which are unpacked while loading. [`pack`] sets it, to 1.6 by default. As of `table_bits`,
            older versions refuse 1.6.
        source_dtype (`str`, *optional*): dtype of the full-precision checkpoint that the student was made of, recorded when it is made. It is
            what [`pack`] stores norms and biases in by default.
        surgery_version (`int`): by which rules projections are found. 2, or 1 for students of earlier versions of this library (whose
            config.json does not have it), which load as they were saved: `projections` is all there is where it is given, and attention
            that its architecture's plan leaves out stays in full precision.

    Raises:
        ValueError: an option has a value that is not listed above.
    """

    def __init__(
        self,
        /,  # "self" may be a key of a file
        quantization_mode: QuantizationMode = "online",
        sub_norm: SubNormPlacement = "output",
        sub_norm_eps: float = 1e-6,
        weight_granularity: WeightGranularity = "tensor",
        group_size: int = 128,
        activation_bits: int | None = 8,
        modules_to_not_convert: list[str] | None = None,
        modules_without_sub_norm: list[str] | None = None,
        projections: dict[str, str | None] | None = None,
        head_bits: int = 16,
        table_bits: int = 16,
        weight_bits: float = 2,
        source_dtype: str | None = None,
        surgery_version: int = 2,
        **kwargs: Any,
    ):
        self.quant_method = QUANT_METHOD  # type: ignore[assignment]  # none of transformers' own, which it enumerates
        self.quantization_mode = quantization_mode
        self.sub_norm = sub_norm
        self.sub_norm_eps = sub_norm_eps
        self.weight_granularity = weight_granularity
        self.group_size = group_size
        self.activation_bits = activation_bits
        self.modules_to_not_convert = modules_to_not_convert
        self.modules_without_sub_norm = modules_without_sub_norm
        self.projections = projections
        self.head_bits = head_bits
        self.table_bits = table_bits
        self.weight_bits = weight_bits
        self.source_dtype = source_dtype
        self.surgery_version = surgery_version
        kwargs.pop("quant_method", None)
        if kwargs:
            known = [name for name in inspect.signature(type(self)).parameters if name != "kwargs"]
            raise ValueError(
                f"BitNetConfig got unknown options: {_short(sorted(kwargs))}; there are: {known}. (A checkpoint that a newer version of "
                "hf-bitdistill saved needs that version.)"
            )
        self.post_init()

    def post_init(self) -> None:
        """Check every option; raises `ValueError` naming the option and what it may be."""
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            # (By type too: 8.0 and True are equal to numbers that are allowed.)
            if not any(type(value) is type(choice) and value == choice for choice in allowed):
                raise ValueError(f"BitNetConfig.{name}={_short(value)} is not supported; choose one of {allowed}.")
        eps = self.sub_norm_eps
        if isinstance(eps, bool) or not isinstance(eps, (int, float)) or not 0 < eps < 1:
            raise ValueError(f"BitNetConfig.sub_norm_eps={_short(eps)} must be a number between 0 and 1.")
        for option in ("modules_to_not_convert", "modules_without_sub_norm"):
            names = getattr(self, option)
            if names is not None and not (
                isinstance(names, (list, tuple, set, frozenset)) and all(isinstance(name, str) for name in names)
            ):
                raise ValueError(f"BitNetConfig.{option}={_short(names)} must be a list of module names.")
        if self.projections is not None and (
            not isinstance(self.projections, dict)
            or not all(isinstance(suffix, str) for suffix in self.projections)
            or not all(role is None or role in ("input", "output") for role in self.projections.values())
            or not self.projections
            or (self.surgery_version == 1 and None in self.projections.values())
        ):
            raise ValueError(
                f"BitNetConfig.projections={_short(self.projections)} must map module name suffixes to 'input', 'output' or None."
            )

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """From what [`to_dict`] made, of any version of this library: without `surgery_version` it is of a student made by the first."""
        return super().from_dict({"surgery_version": 1, **config_dict}, return_unused_kwargs, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Without options that say nothing: versions of this library that do not know them read all other checkpoints."""
        values = super().to_dict()
        if self.table_bits == 16:
            del values["table_bits"]
        if self.weight_bits == 2:
            del values["weight_bits"]
        if self.source_dtype is None:
            del values["source_dtype"]
        return values

    @property
    def scale_group_size(self) -> int | None:
        """`group_size` where it applies, else `None`."""
        return self.group_size if self.weight_granularity == "group" else None


# A second import of this module (an interactive reload) must not fail on "already registered".
if QUANT_METHOD in AUTO_QUANTIZATION_CONFIG_MAPPING:
    AUTO_QUANTIZATION_CONFIG_MAPPING[QUANT_METHOD] = BitNetConfig
else:
    register_quantization_config(QUANT_METHOD)(BitNetConfig)
