"""The layers of a student: `BitLinear` (online, trainable), `TernaryLinear` (offline, packed), `SubLN`, `Experts`, quantised tables, and
`SubNormLinear` (dequantised)."""

from .bit_linear import (
    BitLinear,
    full_precision,
    set_dead_zone_leak,
    set_quantization_share,
    set_scale_gradient,
    warn_of_16_bit_weights,
)
from .evaluation_kernels import kernels_while_evaluating
from .experts import Experts
from .quantized_table import QuantizedEmbedding, QuantizedHead, QuantizedTable, StoredTable
from .sub_norm import SubLN
from .sub_norm_linear import SubNormLinear
from .ternary_gather import compute_as_gathered, enable_ternary_all_gather
from .ternary_linear import TernaryLinear


__all__ = [
    "BitLinear",
    "Experts",
    "QuantizedEmbedding",
    "QuantizedHead",
    "QuantizedTable",
    "StoredTable",
    "SubLN",
    "SubNormLinear",
    "TernaryLinear",
    "compute_as_gathered",
    "enable_ternary_all_gather",
    "full_precision",
    "kernels_while_evaluating",
    "set_dead_zone_leak",
    "set_quantization_share",
    "set_scale_gradient",
    "warn_of_16_bit_weights",
]
