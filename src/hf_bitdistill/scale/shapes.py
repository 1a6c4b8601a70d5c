"""What a plan knows of a model: its configuration. Models are built of it without weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from ..config import BitNetConfig
from ..modeling.locate import find_model
from ..modeling.placement import fused_experts
from ..modeling.surgery import apply_bitnet, unfuse_experts
from ..nn import BitLinear
from ..training.warm_start.decoder_layers import decoder_layers


# How configs call the number of experts a layer.
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


def read_config(name_or_path: str) -> Any:
    """Of a model: a folder, a Hub id, or a `config.json`. No weights are read."""
    file = Path(name_or_path).expanduser()
    return AutoConfig.from_pretrained(str(file) if file.is_file() else find_model(name_or_path))


@dataclass(frozen=True)
class Weights:
    """Numbers of weights.

    Attributes:
        ternary: of ternary layers.
        other: everything else that is trained, without embedding and output layer.
        embedding, head: a tied head has none of its own.
        largest_ternary, largest_other: of the largest decoder layer.
        scales: of ternary weights, sent with their codes.
        teacher: of the model in full precision that teaches.
        teacher_layer: of its largest decoder layer.
        teacher_embedding, teacher_head: a tied head has none of its own.
    """

    ternary: int
    other: int
    embedding: int
    head: int
    largest_ternary: int
    largest_other: int
    scales: int
    teacher: int
    teacher_layer: int
    teacher_embedding: int
    teacher_head: int

    @property
    def all(self) -> int:
        """That are trained."""
        return self.ternary + self.other + self.tables

    @property
    def tables(self) -> int:
        return self.embedding + self.head

    @property
    def largest_layer(self) -> int:
        return self.largest_ternary + self.largest_other


class ModelShape:
    """A model that is known by its configuration alone.

    Args:
        config: of a full-precision model.

    Attributes:
        count: of all its weights.
        layer: of its largest decoder layer.
        embedding, head: a tied head has none of its own.
        outside: of all others that are in no decoder layer.
    """

    def __init__(self, config: Any):
        self.config = config
        with torch.device("meta"):
            whole = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        text = config.get_text_config()
        self.depth: int = text.num_hidden_layers
        self.hidden: int = text.hidden_size
        self.vocabulary: int = text.vocab_size
        layers = decoder_layers(whole)
        signatures = {tuple((name, weight.shape) for name, weight in layer.named_parameters()) for layer in layers}
        self.is_uniform = len(signatures) == 1
        """Whether all its layers have the same weights, so that two of them tell what all take."""
        fused = list(fused_experts(whole).values())
        self.experts = cast(int, fused[0].num_experts) if fused else 0
        self._expert_key = next((key for key in _EXPERTS if getattr(text, key, None) == self.experts), None)
        self.experts_a_token: int = getattr(text, "num_experts_per_tok", 1) if fused else 1
        self.is_tied = whole.get_output_embeddings().weight is whole.get_input_embeddings().weight
        self.count = sum(weight.numel() for weight in whole.parameters())
        self.layer = max(sum(weight.numel() for weight in layer.parameters()) for layer in layers)
        self.embedding: int = cast(nn.Embedding, whole.get_input_embeddings()).weight.numel()
        self.head = 0 if self.is_tied else cast(int, whole.get_output_embeddings().weight.numel())
        in_layers = sum(weight.numel() for weight in layers.parameters())
        self.outside = self.count - in_layers - self.embedding - self.head

    @property
    def active(self) -> float:
        """Weights that a token passes through."""
        share = self.experts_a_token / self.experts if self.experts else 1.0
        in_layers = self.count - self.embedding - self.head - self.outside
        return share * in_layers + self.count - in_layers

    @property
    def counted_depths(self) -> tuple[int, ...]:
        """Depths of the models that are computed with: two, if these tell what all layers take."""
        return (1, 2) if self.is_uniform and self.depth > 2 else (self.depth,)

    @property
    def counted_experts(self) -> tuple[int | None, ...]:
        """Experts a layer of these, likewise; `None`: as the configuration has them."""
        if not self.experts:
            return (None,)
        few = (self.experts_a_token, 2 * self.experts_a_token)
        return few if self._expert_key is not None and few[1] < self.experts else (None,)

    def reduced(self, depth: int, experts: int | None = None, vocabulary: int = 8) -> Any:
        """The configuration with fewer layers, experts and words."""
        config = copy.deepcopy(self.config)
        text = config.get_text_config()
        for name, value in list(vars(text).items()):
            if isinstance(value, (list, tuple)) and len(value) == self.depth and name != "architectures":
                setattr(text, name, value[:depth])
        text.num_hidden_layers = depth
        text.vocab_size = vocabulary
        text.pad_token_id = None
        if experts is not None and self._expert_key is not None:
            setattr(text, self._expert_key, experts)
        return config

    def frozen(self, config: Any, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        """A teacher. Its experts are taken apart, as a student's are."""
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        unfuse_experts(model)
        return model.eval().requires_grad_(False)


class Shape(ModelShape):
    """A student that is known by its configuration alone.

    Args:
        config: of the full-precision model that it is made of.
        bitnet: how.
        teacher: configuration of a teacher of another shape. Default: the model it is made of.
    """

    def __init__(self, config: Any, bitnet: BitNetConfig, teacher: Any = None):
        super().__init__(config)
        self.bitnet = bitnet
        self.teacher: ModelShape = self if teacher is None else ModelShape(teacher)
        self.weights = self._count()

    def student(self, config: Any, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        return apply_bitnet(AutoModelForCausalLM.from_config(config, dtype=dtype), self.bitnet).train()

    def _count(self) -> Weights:
        with torch.device("meta"):
            # (Experts of a uniform model are taken apart in one layer alone: there may be thousands.)
            student = self.student(self.reduced(1 if self.is_uniform else self.depth, vocabulary=self.vocabulary))
        layer_counts = [_count_layer(layer) for layer in decoder_layers(student)]
        times = self.depth if self.is_uniform else 1
        ternary, other, scales = (times * sum(part) for part in zip(*layer_counts, strict=True))
        largest = max(layer_counts, key=lambda count: count[0] + count[1])
        teacher = self.teacher
        of_teacher = teacher.count, teacher.layer, teacher.embedding, teacher.head
        return Weights(
            ternary, other + self.outside, self.embedding, self.head, largest[0], largest[1], scales, *of_teacher
        )


def _count_layer(layer: nn.Module) -> tuple[int, int, int]:
    """Ternary weights, others, and scales."""
    bit_linears = [module for module in layer.modules() if isinstance(module, BitLinear)]
    ternary = sum(module.weight.numel() for module in bit_linears)
    rows: Sequence[int] = [module.out_features for module in bit_linears if module.weight_granularity != "tensor"]
    groups = [
        1 if module.group_size is None else -(-module.in_features // module.group_size)
        for module in bit_linears
        if module.weight_granularity != "tensor"
    ]
    scales = sum(count * each for count, each in zip(rows, groups, strict=True))
    return ternary, sum(weight.numel() for weight in layer.parameters()) - ternary, scales
