"""`lm_eval --model bitnet`: EleutherAI's evaluation harness on the native decoder.

`bitdistill exec -- lm_eval` knows the name; a program that imports this module does too.
"""

from __future__ import annotations

import logging
from typing import Any

from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from .modeling_decoder import BitNetModelForCausalLM


logger = logging.getLogger(__name__)

# Arguments of lm_eval that would have to change what computes, and cannot. Not set: `None` or `False`.
_REFUSED = ("parallelize", "tp_plan", "delta", "autogptq", "gptqmodel", "gguf_file", "mixed_precision_dtype")


@register_model("bitnet")
class BitNetLM(HFLM):
    """The harness' own `hf` model, whose logits and texts come from a [`BitNetModelForCausalLM`].

    Args:
        pretrained: folder or Hub id of a packed student, or a loaded [`BitNetModelForCausalLM`].
        device: the native decoder computes on the CPU, whatever lm_eval names by default.
        peft: folder or Hub id of a LoRA adapter.
        kwargs: those of `hf`, and those of `from_pretrained` (`export`, `num_threads`, `head_bits`, `kv_bits`).

    Raises:
        ValueError: an argument of `hf` that has no meaning here.
    """

    def __init__(self, pretrained: str | BitNetModelForCausalLM, device: str | None = "cpu", **kwargs: Any):
        refused = [name for name in _REFUSED if kwargs.get(name)]
        if refused:
            raise ValueError(f"--model bitnet: {', '.join(refused)} is for --model hf, not for the native decoder.")
        if device not in (None, "cpu"):
            logger.info(f"--model bitnet computes on the CPU, not on {device}")
        super().__init__(pretrained, device="cpu", backend=kwargs.pop("backend", "causal"), **kwargs)

    def _create_model(
        self,
        pretrained: str,
        revision: str | None = "main",
        dtype: str | None = "auto",
        trust_remote_code: bool | None = False,
        subfolder: str = "",
        peft: str | None = None,
        **kwargs: Any,
    ) -> None:
        for name in (
            "gpus",
            "max_memory_per_gpu",
            "max_cpu_memory",
            "offload_folder",
            "quantization_config",
            *_REFUSED,
        ):
            kwargs.pop(name, None)
        self._model = BitNetModelForCausalLM.from_pretrained(
            pretrained,
            revision=revision,
            dtype=dtype,
            trust_remote_code=bool(trust_remote_code),
            subfolder=subfolder,
            adapter=peft,
            **kwargs,
        )
