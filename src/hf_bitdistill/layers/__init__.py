"""The layers of a student: `BitLinear` (online, trainable), `TernaryLinear` (offline, packed), `SubLN`."""

from .bit_linear import BitLinear, full_precision, set_quantization_share
from .sub_norm import SubLN
from .ternary_linear import TernaryLinear


__all__ = ["BitLinear", "SubLN", "TernaryLinear", "full_precision", "set_quantization_share"]
