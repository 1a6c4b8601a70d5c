"""The layers of a student: `BitLinear` (online, trainable), `TernaryLinear` (offline, packed), `SubLN`, and quantised tables."""

from .bit_linear import (
    BitLinear,
    full_precision,
    set_dead_zone_leak,
    set_quantization_share,
    set_scale_gradient,
    warn_of_16_bit_weights,
)
from .quantized_table import QuantizedEmbedding, QuantizedHead, QuantizedTable
from .sub_norm import SubLN
from .ternary_linear import TernaryLinear


__all__ = [
    "BitLinear",
    "QuantizedEmbedding",
    "QuantizedHead",
    "QuantizedTable",
    "SubLN",
    "TernaryLinear",
    "full_precision",
    "set_dead_zone_leak",
    "set_quantization_share",
    "set_scale_gradient",
    "warn_of_16_bit_weights",
]
