"""`BitLinear`: the online layer, latent weights that are ternarised at every forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from ..config import BitNetConfig
from ..quantization import (
    GatheredWeight,
    effective_weight,
    fake_quantized_linear,
    leaking_linear,
    mixed_linear,
    ternarize,
    ternary_linear,
)
from .base import TernaryLayer
from .shared_inputs import LAYER_PASSES
from .sub_norm import SubLN


if TYPE_CHECKING:
    from .evaluation_kernels import WeightInKernels
    from .ternary_gather import LatentGather


logger = logging.get_logger(__name__)


def to_checkpoint(weight: Tensor) -> Tensor:
    """Latent weight `[R, C]` -> `[R, 1, C]`, the shape it has in an online checkpoint (see `conversions.py`)."""
    return weight.unsqueeze(1) if weight.ndim == 2 else weight


def from_checkpoint(weight: Tensor) -> Tensor:
    """Inverse of [`to_checkpoint`]; a full-precision weight `[R, C]` passes unchanged."""
    return weight.squeeze(1) if weight.ndim == 3 and weight.shape[1] == 1 else weight


class BitLinear(TernaryLayer):
    """A linear layer that computes with ternary weights and int8 activations and trains latent weights.

    Without a gradient the forward is [`ternary_linear`] on the ternarised weight: exactly what the packed layer computes. Where a gradient
    is asked for it is [`fake_quantized_linear`]; in training mode it is that, [`mixed_linear`] or [`leaking_linear`], as the three switches
    below have chosen.

    Args:
        in_features, out_features, bias, device, dtype: as `nn.Linear`.
        config: supplies granularity, activation bits and the SubLN's epsilon.
        sub_norm: put a [`SubLN`] (`rms_norm`) in front.
        transposed_source: the full-precision checkpoint stores this weight as `[C, R]` (GPT-2's `Conv1D`).

    Attributes:
        weight: latent weight `[R, C]`.
        rms_norm: the [`SubLN`] or `None`.
        quantization_share: 1 is ternary; less is the warm-up of [`mixed_linear`], training mode only. While it is less, the other two
            wait.
        dead_zone_leak: share of their value with which weights of code 0 take part ([`leaking_linear`]), training mode only.
        scale_gradient: the scales are learned too (see [`fake_quantized_linear`]), training mode only.
        quantize: `False` computes with the latent weight itself, see [`full_precision`].
    """

    # Of [`enable_ternary_all_gather`].
    _gather: LatentGather | None = None
    # Of [`compute_as_gathered`].
    _taken_for_gathered: GatheredWeight | None = None
    # Of [`kernels_while_evaluating`].
    in_kernels: WeightInKernels | None = None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        config: BitNetConfig | None = None,
        sub_norm: bool = False,
        transposed_source: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(in_features, out_features, bias=bias, device=device, dtype=dtype)
        self._set_up(config, sub_norm, device, dtype)
        # The constants 1 and 0, or a scalar tensor, which torch.compile takes as an input: a float would be compiled in, and every
        # step of a schedule compiled anew.
        self._quantization_share: float | Tensor = 1.0
        self._dead_zone_leak: float | Tensor = 0.0
        self._scale_gradient = False
        self._choose_training_linear()
        self._quantize = True
        self.transposed_source = transposed_source

    @classmethod
    def from_linear(cls, linear: Any, config: BitNetConfig, sub_norm: bool = False) -> BitLinear:
        """Take over the weight and bias of an `nn.Linear` or of a transformers `Conv1D` (no copy for `nn.Linear`)."""
        transposed = isinstance(linear, Conv1D)
        in_features = linear.nx if transposed else linear.in_features
        out_features = linear.nf if transposed else linear.out_features
        weight, bias = linear.weight, linear.bias
        with torch.device("meta"):
            layer = cls(in_features, out_features, bias is not None, config, False, transposed, dtype=weight.dtype)
        layer.weight = nn.Parameter(weight.detach().T.contiguous()) if transposed else weight
        layer.bias = bias
        if sub_norm:
            layer.rms_norm = SubLN(in_features, config.sub_norm_eps, device=weight.device, dtype=weight.dtype)
        layer.weight.requires_grad_(weight.requires_grad)
        return layer.train(linear.training)

    @property
    def quantization_share(self) -> float:
        return float(self._quantization_share)

    @quantization_share.setter
    def quantization_share(self, share: float) -> None:
        self._forget_gathered()
        self._quantization_share = 1.0 if share == 1.0 else torch.tensor(float(share), device="cpu")
        self._choose_training_linear()

    @property
    def dead_zone_leak(self) -> float:
        return float(self._dead_zone_leak)

    @dead_zone_leak.setter
    def dead_zone_leak(self, leak: float) -> None:
        self._forget_gathered()
        self._dead_zone_leak = 0.0 if leak == 0.0 else torch.tensor(float(leak), device="cpu")
        self._choose_training_linear()

    @property
    def scale_gradient(self) -> bool:
        return self._scale_gradient

    @scale_gradient.setter
    def scale_gradient(self, scale_gradient: bool) -> None:
        self._forget_gathered()
        self._scale_gradient = scale_gradient
        self._choose_training_linear()

    @property
    def quantize(self) -> bool:
        return self._quantize

    @quantize.setter
    def quantize(self, quantize: bool) -> None:
        self._forget_gathered()
        self._quantize = quantize

    def _choose_training_linear(self) -> None:
        """What the layer computes in training mode, and with which options of its own: said by its switches, once for each change."""
        self._training_linear: Callable[..., Tensor]
        self._training_options: dict[str, Any]
        if isinstance(self._quantization_share, Tensor):
            self._training_linear, self._training_options = mixed_linear, {"share": self._quantization_share}
        elif isinstance(self._dead_zone_leak, Tensor):
            options = {"leak": self._dead_zone_leak, "scale_gradient": self._scale_gradient}
            self._training_linear, self._training_options = leaking_linear, options
        else:
            options = {"scale_gradient": self._scale_gradient}
            self._training_linear, self._training_options = fake_quantized_linear, options

    def _forget_gathered(self) -> None:
        """What was gathered of the weight is not what the layer needs now."""
        if self._gather is not None:
            self._gather.gathered = None

    def _gathered_weight(self) -> GatheredWeight | None:
        """What `weight` stands for where it was gathered as codes; `None` where it is the latent weight."""
        if self._gather is None or not self._gather.in_shards or type(self.weight) is not nn.Parameter:
            return self._taken_for_gathered
        if self._gather.gathered is None:
            raise RuntimeError(
                "A switch of this layer was changed while its weight was gathered for another one: call reshard() of the FSDP module."
            )
        return self._gather.gathered

    def ternarize(self) -> tuple[Tensor, Tensor]:
        """`(codes, weight_scale)` of the current latent weight, see [`hf_bitdistill.quantization.ternarize`]."""
        gathered = self._gathered_weight()
        if gathered is not None:
            return gathered.codes(self.weight).float(), gathered.weight_scale
        return ternarize(self.weight, self.weight_granularity, self.group_size)

    def dequantize(self) -> Tensor:
        """The effective weight `weight_scale * codes`, float32 `[R, C]`."""
        return effective_weight(*self.ternarize(), self.group_size)

    def normed(self, x: Tensor) -> Tensor:
        """What the product reads, `[..., C]`: `x` behind the SubLN."""
        return x if self.rms_norm is None else self.rms_norm(x)

    def forward(self, x: Tensor, normed: bool = False) -> Tensor:
        """`[..., C]` -> `[..., R]`.

        Args:
            normed: `x` is what [`normed`] gave.
        """
        kernels = self.in_kernels
        if kernels is not None and self._quantize and not (self.training or torch.is_grad_enabled()):
            y = None if torch.compiler.is_compiling() else kernels.linear(self, x, normed)
            if y is not None:
                return y
        if not normed:
            x = self.normed(x)
        gathered = self._gathered_weight()
        if not self._quantize:
            return F.linear(x, self.weight, self.bias)
        options: dict[str, Any] = {"group_size": self.group_size, "activation_bits": self.activation_bits}
        if self.training or (torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)):
            linear: Callable[..., Tensor] = self._training_linear if self.training else fake_quantized_linear
            own = self._training_options if self.training else {}
            if linear is fake_quantized_linear:
                own = {"passes": LAYER_PASSES, **own}
            granularity = self.weight_granularity
            return linear(x, self.weight, self.bias, granularity=granularity, gathered=gathered, **own, **options)
        if gathered is None:
            codes, weight_scale = self.ternarize()
        else:
            codes, weight_scale = gathered.codes(self.weight), gathered.weight_scale
        return ternary_linear(x, codes, weight_scale, self.bias, **options)

    # Trainer resumes by loading a checkpoint's file as a state dict.
    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        key = prefix + "weight"
        if key in state_dict:
            state_dict[key] = from_checkpoint(state_dict[key])
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    # FSDP2 puts its parameters in the place of the layer's one in this way, and so does a state dict that is assigned.
    def __setattr__(self, name: str, value) -> None:
        super().__setattr__(name, value)
        if name == "weight" and self._gather is not None:
            self._gather.adopt()

    # By this torch moves and converts a module.
    def _apply(self, fn, recurse: bool = True):
        super()._apply(fn, recurse)
        if self._gather is not None:
            self._gather.adopt()
        return self


@contextmanager
def full_precision(model: nn.Module) -> Iterator[None]:
    """Within the context every [`BitLinear`] of `model` computes with its latent weight, nothing rounded."""
    layers = [module for module in model.modules() if isinstance(module, BitLinear)]
    before = [layer.quantize for layer in layers]
    try:
        for layer in layers:
            layer.quantize = False
        _reshard(model)
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer.quantize = value
        _reshard(model)


def _reshard(model: nn.Module) -> None:
    """Give back what of `model` is gathered, which is not what its layers need now."""
    if any(isinstance(module, BitLinear) and module._gather is not None for module in model.modules()):
        from torch.distributed.fsdp import FSDPModule  # (not in every build of torch)

        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def set_quantization_share(model: nn.Module, share: float) -> None:
    """Set the share of quantisation in every [`BitLinear`] of `model`: 0 is full precision, 1 is ternary.

    Only the training-mode forward mixes; evaluation always sees the ternary model.

    Raises:
        ValueError: `share` is outside [0, 1].
    """
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"The share of quantisation must be between 0 and 1, got {share}.")
    for module in model.modules():
        if isinstance(module, BitLinear):
            module.quantization_share = share
    _reshard(model)


def set_dead_zone_leak(model: nn.Module, leak: float) -> None:
    """Set `dead_zone_leak` in every [`BitLinear`] of `model`; evaluation always sees the ternary model.

    Raises:
        ValueError: `leak` is outside [0, 1].
    """
    if not 0.0 <= leak <= 1.0:
        raise ValueError(f"The leak of the dead zone must be between 0 and 1, got {leak}.")
    for module in model.modules():
        if isinstance(module, BitLinear):
            module.dead_zone_leak = leak
    _reshard(model)


def set_scale_gradient(model: nn.Module, scale_gradient: bool) -> None:
    """Set `scale_gradient` in every [`BitLinear`] of `model`."""
    for module in model.modules():
        if isinstance(module, BitLinear):
            module.scale_gradient = scale_gradient
    _reshard(model)


def warn_of_16_bit_weights(model: nn.Module) -> None:
    """Log a warning if latent weights that are to be trained have 16 bits, which cannot hold small updates."""
    weights = (m.weight for m in model.modules() if isinstance(m, BitLinear) and m.weight.requires_grad)
    narrow = next((weight.dtype for weight in weights if weight.dtype.itemsize == 2), None)
    if narrow is not None:
        logger.warning(
            f"The latent weights are in {narrow}, which rounds away updates of less than about 1/512 of a weight. Load the student "
            "with dtype=torch.float32 (--dtype float32) and train with bf16=True (--bf16)."
        )
