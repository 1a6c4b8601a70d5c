"""What users of torch and transformers ask any model: its parameters, its size, where and in what it computes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from hf_bitdistill.modeling.parameter_count import count_parameters


class ModuleSurface:
    """Answers for a model whose weights are in the native library."""

    decoder: Any  # a `NativeDecoder`; `None` where transformers computes
    config: PreTrainedConfig
    auto_model_class: Any
    _student: Any  # a `Student`

    @property
    def device(self) -> torch.device:
        """Always the CPU."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Of the outputs."""
        return torch.float32

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """The embedding table and an output head of its own, those that are kept in floats: none with `head_bits` 8 or 4. They are what the
        decoder reads; all other weights are packed in the native library. Ask `device`, `dtype` and `num_parameters()`, not these.
        """
        for name, table in self.decoder.float_tables.items():
            yield name, nn.Parameter(table, requires_grad=False)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """See [`named_parameters`]."""
        for _, parameter in self.named_parameters(recurse=recurse):
            yield parameter

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Weights, ternary ones and those of small tables one each, as before packing. None is trainable in the native library."""
        return 0 if only_trainable else count_parameters(self._student.model, exclude_embeddings=exclude_embeddings)

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Bytes of all weight matrices in memory, embedding and head included, without norms, biases and caches."""
        return self.decoder.weight_bytes

    # ---- moving ---------------------------------------------------------------------------------------------------

    def to(self, *args: Any, **kwargs: Any):
        """Accepts what changes nothing: the CPU, and the dtype that it computes in. Where transformers computes, other dtypes too.

        Raises:
            ValueError: another device, or another dtype for the native decoder; says what to do instead.
        """
        device, dtype = _target(*args, **kwargs)
        name = type(self).__name__
        if device is not None and device.type != "cpu":
            raise ValueError(
                f"{name} computes on the CPU; it cannot move to {device}. On another device transformers computes with packed layers: "
                f"`import hf_bitdistill`, then {self.auto_model_class.__name__}.from_pretrained(..., device_map='{device.type}')."
            )
        if dtype is None or dtype == self.dtype:
            return self
        self._to_dtype(dtype)
        return self

    def _to_dtype(self, dtype: torch.dtype) -> None:
        raise ValueError(
            f"{type(self).__name__} computes in float32, not in {dtype}, whatever the checkpoint's dtype: head_bits and kv_bits of from_pretrained "
            "say how tables and cache are kept in memory."
        )

    def cpu(self):
        """Itself."""
        return self

    def cuda(self, device: int | torch.device | None = None):
        """See [`to`]."""
        return self.to(torch.device("cuda") if device is None else device)

    def float(self):
        """See [`to`]."""
        return self.to(torch.float32)

    def half(self):
        """See [`to`]."""
        return self.to(torch.float16)

    def bfloat16(self):
        """See [`to`]."""
        return self.to(torch.bfloat16)


def _target(*args: Any, **kwargs: Any) -> tuple[torch.device | None, torch.dtype | None]:
    """Device and dtype that the arguments of `torch.nn.Module.to` name."""
    device, dtype = kwargs.get("device"), kwargs.get("dtype")
    for argument in (*args, kwargs.get("tensor")):
        if isinstance(argument, Tensor):
            device, dtype = argument.device, argument.dtype
        elif isinstance(argument, torch.dtype):
            dtype = argument
        elif isinstance(argument, (str, torch.device)) or (
            isinstance(argument, int) and not isinstance(argument, bool)
        ):
            device = argument
    if isinstance(device, int):  # (torch.device of a number is that of an accelerator, which there may not be)
        device = torch.device("cuda", device)
    return None if device is None else torch.device(device), dtype
