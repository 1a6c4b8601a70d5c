"""Pure functions: quantisation, integer arithmetic, packing. No modules, no files."""

from .folding import fold_ternary, least_squares_start
from .packing import (
    PackedWeightError,
    check_packed_weight,
    check_weight_scale,
    pack_ternary,
    packed_rows,
    unpack_ternary,
)
from .table import (
    INT4_GROUP,
    check_table,
    dequantize_table,
    exact_dtype,
    least_lossy_dtype,
    quantize_int4_groups,
    quantize_int8_rows,
    quantize_table,
    table_shapes,
)
from .ternary import (
    absmean_scale,
    accumulation_dtype,
    effective_weight,
    expand_weight_scale,
    fake_quantized_linear,
    integer_accumulators,
    num_groups,
    quantize_activations,
    sum_per_scale,
    ternarize,
    ternary_linear,
    weight_scale_shape,
)


__all__ = [
    "INT4_GROUP",
    "PackedWeightError",
    "absmean_scale",
    "accumulation_dtype",
    "check_packed_weight",
    "check_table",
    "check_weight_scale",
    "dequantize_table",
    "effective_weight",
    "exact_dtype",
    "expand_weight_scale",
    "fake_quantized_linear",
    "fold_ternary",
    "integer_accumulators",
    "least_lossy_dtype",
    "least_squares_start",
    "num_groups",
    "pack_ternary",
    "packed_rows",
    "quantize_activations",
    "quantize_int4_groups",
    "quantize_int8_rows",
    "quantize_table",
    "sum_per_scale",
    "table_shapes",
    "ternarize",
    "ternary_linear",
    "unpack_ternary",
    "weight_scale_shape",
]
