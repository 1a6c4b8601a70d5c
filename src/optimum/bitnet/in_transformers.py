"""Where the native decoder cannot compute a model: packed layers in transformers behind the same classes."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_bitdistill import BitNetConfig, pack, quantize_head
from hf_bitdistill.config import QUANT_METHOD
from hf_bitdistill.machine.environment import to
from hf_bitdistill.modeling.model_heads import auto_class
from hf_bitdistill.modeling.surgery import is_student, student_config

from .adapters import PeftAdapters


logger = logging.getLogger(__name__)


class InTransformers:
    """What is another thing than in `BitNetModel`, whose subclass it goes in front of, where a model of transformers computes.

    Args:
        model: with packed layers.
        preprocessors: saved beside it.
    """

    backend = "transformers"
    model: Any  # of transformers
    _adapters: Any  # `PeftAdapters`, once there is one
    _check_no_adapters: Callable[[], None]

    def __init__(self, model: PreTrainedModel, preprocessors: Sequence[Any] = ()):
        own_init: Any = super().__init__  # of the `BitNetModel` behind it
        own_init(model.config, None, preprocessors=preprocessors)
        self.model = model

    @property
    def dtype(self) -> torch.dtype:
        """Of the outputs."""
        return self.model.dtype

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """As transformers has them."""
        return self.model.named_parameters(*args, **kwargs)

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """As transformers counts them."""
        return self.model.num_parameters(only_trainable, exclude_embeddings)

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """As transformers counts it."""
        return self.model.get_memory_footprint(return_buffers)

    def _to_dtype(self, dtype: torch.dtype) -> None:
        to(self.model, dtype)

    def _new_adapters(self) -> PeftAdapters:
        return PeftAdapters(self.model)

    def _apply_adapters(self, names: tuple[str, ...]) -> None:
        self._adapters.use(names)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """As any object: the model of transformers goes along."""
        return object.__reduce_ex__(self, protocol)

    def dequantize(self, dtype: str | torch.dtype | None = None) -> PreTrainedModel:
        """A copy in floats, see `BitNetModel.dequantize`.

        Raises:
            ValueError: an adapter is in use, or transformers' own layers compute.
        """
        self._check_no_adapters()
        if not is_student(self.model):
            raise ValueError(
                f"transformers' own layers compute this {type(self).__name__}, and these cannot be dequantised: write it in floats with "
                "`bitdistill export transformers --dense`."
            )
        wanted = None if dtype in (None, "auto") else getattr(torch, dtype) if isinstance(dtype, str) else dtype
        return copy.deepcopy(self.model).dequantize(wanted)

    def _save_pretrained(self, save_directory: Path, max_shard_size: str = "50GB", **stored: Any) -> None:
        if stored:
            raise ValueError(
                f"{', '.join(stored)}: only what the native decoder loaded can be stored in another way; use hf_bitdistill.pack."
            )
        self.model.save_pretrained(save_directory, max_shard_size=max_shard_size)

    @property
    def _saves_what_it_read(self) -> bool:
        return False

    @property
    def quantization_config(self) -> BitNetConfig | None:
        """The student's [`BitNetConfig`], `None` for a model that transformers' own layers compute."""
        return student_config(self.model) if is_student(self.model) else None


def load_in_transformers(
    model_id: str, config: PreTrainedConfig, head: str, needs_export: bool, head_bits: int, options: dict[str, Any]
) -> PreTrainedModel:
    """A model with packed layers.

    Args:
        config: of the checkpoint; is not changed.
        head: of [`hf_bitdistill.modeling.model_heads.HEADS`].
        needs_export: it is an online student, which is packed here.
        head_bits: of the embedding and the output head in memory.
        options: of `from_pretrained`.
    """
    config = copy.deepcopy(config)
    quantization = config.quantization_config
    if isinstance(quantization, dict) and quantization.get("quant_method") == QUANT_METHOD:
        # Asked for here, not there: it may say more bits than the checkpoint's config.
        config.quantization_config = {**quantization, "head_bits": 16}
    model = auto_class(head).from_pretrained(model_id, config=config, **options)
    if is_student(model):
        if needs_export:
            model = pack(model, inplace=True)
        if head_bits in (8, 4):
            quantize_head(model, head_bits)
    elif head_bits in (8, 4):
        logger.warning(f"{model_id}: head_bits={head_bits} has no effect on the layers of transformers' own format.")
    return model
