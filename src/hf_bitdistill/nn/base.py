"""What the online and the packed layer have in common."""

from __future__ import annotations

from torch import nn

from ..config import BitNetConfig
from .sub_norm import SubLN


class TernaryLayer(nn.Linear):
    """A linear layer with the options of a student's config, and a SubLN in front where it has one.

    Attributes:
        weight_granularity, group_size: what shares a scale.
        activation_bits: 8, or `None` for activations in floats.
        rms_norm: the [`SubLN`] or `None`.
    """

    rms_norm: SubLN | None

    def _set_up(self, config: BitNetConfig | None, sub_norm: bool, device, dtype) -> None:
        """To be called by a constructor that knows `in_features` already. Without a config: the default one."""
        config = config or BitNetConfig()
        self.weight_granularity = config.weight_granularity
        self.group_size = config.scale_group_size
        self.activation_bits = config.activation_bits
        self.rms_norm = SubLN(self.in_features, config.sub_norm_eps, device=device, dtype=dtype) if sub_norm else None

    def extra_repr(self) -> str:
        bits = "float" if self.activation_bits is None else f"int{self.activation_bits}"
        return f"{super().extra_repr()}, granularity={self.weight_granularity}, activations={bits}"
