"""`TernaryLinear`: the offline layer, packed ternary weights for inference."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..config import BitNetConfig
from ..ops import MAX_COLUMNS, packed_linear, stored_ternary_linear, ternary_pack
from ..ops.dense_storage import check_stored, pack_stored, unpack_stored
from ..ops.stored import is_exporting
from ..quantization import (
    PackedWeightError,
    check_weight_scale,
    dense_bytes,
    effective_weight,
    pack_ternary,
    packed_rows,
    result_dtype,
    unpack_ternary,
    weight_scale_shape,
)
from .base import TernaryLayer
from .bit_linear import BitLinear
from .kernel_weight import KernelWeight
from .sub_norm import SubLN


class TernaryLinear(KernelWeight, TernaryLayer):
    """A linear layer whose weights are ternary codes, 2 bits each, with float32 scales.

    It is an `nn.Linear` to those who look for linear layers by their class (PEFT above all), though its `weight` is no matrix of floats.

    Args:
        in_features, out_features, bias, device: as `nn.Linear`.
        config: supplies granularity, activation bits, the SubLN's epsilon, and the bits of a weight in files.
        sub_norm: put a [`SubLN`] (`rms_norm`) in front.
        dtype: of the bias and of the SubLN's weight.

    Attributes:
        weight: uint8 `[ceil(R / 4), C]`, layout of [`hf_bitdistill.quantization.packing`].
        weight_bits: 2 or 1.6, of a weight in the files of a checkpoint; in memory it has 2.
        weight_scale: float32 `[1]`, `[R]` or `[R, G]`, multiplying; stays float32 under `.to(dtype)`.
        bias: `[R]` or `None`.
        rms_norm: the [`SubLN`] or `None`.
    """

    # What it holds comes from a checkpoint: transformers has nothing to draw at random here.
    _is_hf_initialized = True

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        config: BitNetConfig | None = None,
        sub_norm: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        nn.Module.__init__(self)  # (nn.Linear's own would allocate the floats)
        config = config or BitNetConfig()
        self.in_features = in_features
        self.out_features = out_features
        self.weight_bits = config.weight_bits
        self._set_up(config, sub_norm, device, dtype)
        packed_shape = (packed_rows(out_features), in_features)
        scale_shape = weight_scale_shape(out_features, in_features, self.weight_granularity, self.group_size)
        self.register_buffer("weight", torch.zeros(packed_shape, dtype=torch.uint8, device=device))
        self.register_buffer("weight_scale", torch.ones(scale_shape, dtype=torch.float32, device=device))
        if bias:
            self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype), requires_grad=False)
        else:
            self.register_parameter("bias", None)

    @classmethod
    def from_bit_linear(cls, layer: BitLinear, config: BitNetConfig) -> TernaryLinear:
        """Pack the current latent weight of `layer`.

        Raises:
            PackedWeightError: the latent weight is not finite, or its codes are all equal (all zero, say).
        """
        codes, weight_scale = layer.ternarize()
        with torch.device("meta"):
            packed = cls(layer.in_features, layer.out_features, layer.bias is not None, config)
        check_weight_scale(weight_scale, packed.weight_scale.shape)
        packed.weight = pack_ternary(codes)
        check_stored(packed.weight, layer.out_features, layer.in_features)
        packed.weight_scale = weight_scale
        if layer.bias is not None:
            packed.bias = nn.Parameter(layer.bias.detach().clone(), requires_grad=False)
        if layer.rms_norm is not None:
            weight = layer.rms_norm.weight
            packed.rms_norm = SubLN(layer.in_features, layer.rms_norm.eps, device=weight.device, dtype=weight.dtype)
            packed.rms_norm.weight.data.copy_(weight.detach())
        return packed.requires_grad_(False).eval()

    def check(self) -> None:
        """Refuse content that cannot be a packed ternary layer.

        Raises:
            PackedWeightError: its message starts with the tensor's name within this layer.
        """
        scale_shape = weight_scale_shape(self.out_features, self.in_features, self.weight_granularity, self.group_size)
        checks = {
            "weight": lambda: check_stored(self.weight, self.out_features, self.in_features),
            "weight_scale": lambda: check_weight_scale(self.weight_scale, scale_shape),
        }
        for name, run in checks.items():
            try:
                run()
            except PackedWeightError as error:
                raise PackedWeightError(f"{name} {error}") from None

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Of the weight in a checkpoint's files."""
        if self.weight_bits == 2:
            return (packed_rows(self.out_features), self.in_features)
        return (dense_bytes(self.out_features, self.in_features),)

    def to_checkpoint(self, weight: Tensor) -> Tensor:
        """A weight of this layer, as in memory, in the form that it has in files."""
        return weight if self.weight_bits == 2 else pack_stored(weight, self.out_features)

    def from_checkpoint(self, weight: Tensor) -> Tensor:
        """Inverse of [`to_checkpoint`]; a weight in the form that it has in memory passes. What stands for no weight becomes code 3."""
        return weight if weight.ndim == 2 else unpack_stored(weight, self.out_features, self.in_features)

    def unpack(self, dtype: torch.dtype = torch.int8) -> Tensor:
        """The ternary codes, `[R, C]` in {-1, 0, 1}."""
        return unpack_ternary(self.weight, self.out_features, dtype)

    def dequantize(self) -> Tensor:
        """The effective weight `weight_scale * codes`, float32 `[R, C]`."""
        return effective_weight(self.unpack(), self.weight_scale, self.group_size)

    def normed(self, x: Tensor) -> Tensor:
        """What the product reads, `[..., C]`: `x` behind the SubLN. float32 where the kernels, which round nothing in between, compute."""
        norm = self.rms_norm
        if norm is None:
            return x
        return norm(x.float() if self._uses_kernels(x) else x)

    def forward(self, x: Tensor, normed: bool = False) -> Tensor:
        """`[..., C]` -> `[..., R]`, on a CPU by the native kernels. Differentiable in `x`, straight through the rounding.

        Args:
            normed: `x` is what [`normed`] gave.
        """
        norm = None if normed else self.rms_norm
        uses_kernels = self._uses_kernels(x)
        # (Offloaded: only the SubLN's own forward brings its weight back.)
        if uses_kernels and (norm is None or norm.weight.device.type == "cpu") and not is_exporting():
            return packed_linear(
                x,
                self.kernel_weight(),
                self.out_features,
                self.bias,
                None if norm is None else norm.weight,
                1e-6 if norm is None else norm.eps,
            )
        dtype = result_dtype(x)
        if norm is not None:
            x = self.normed(x)
        if uses_kernels and not is_exporting():
            return packed_linear(x, self.kernel_weight(), self.out_features, self.bias).to(dtype)
        return stored_ternary_linear(
            x,
            self.weight,
            self.weight_scale,
            self.out_features,
            self.bias,
            group_size=self.group_size,
            activation_bits=self.activation_bits,
            dtype=dtype,
        )

    def _uses_kernels(self, x: Tensor) -> bool:
        if x.device.type != "cpu" or self.weight.device.type != "cpu" or self.activation_bits is None:
            return False
        return not torch.is_autocast_enabled("cpu") and self.in_features <= MAX_COLUMNS

    def _pack_for_kernels(self) -> Tensor:
        return ternary_pack(self.weight, self.weight_scale.view(-1), self.out_features, self.group_size or 0)
