"""`pipeline`: a pipeline of transformers around a model of the native backend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, Pipeline, TextClassificationPipeline, TextGenerationPipeline
from transformers import pipeline as transformers_pipeline

from .modeling_base import HUB_OPTIONS, BitNetModel
from .modeling_classification import BitNetModelForSequenceClassification
from .modeling_decoder import BitNetModelForCausalLM


class _KnowsNativeModels:
    """transformers' pipelines log an error for every class that is not in its own lists, and work all the same."""

    model: Any

    def check_model_type(self, supported_models: Any) -> None:
        if not isinstance(self.model, BitNetModel):
            super().check_model_type(supported_models)  # type: ignore[misc]  # of the pipeline that this is mixed into


class BitNetTextGenerationPipeline(_KnowsNativeModels, TextGenerationPipeline):
    """`TextGenerationPipeline` around a [`BitNetModelForCausalLM`]."""


class BitNetTextClassificationPipeline(_KnowsNativeModels, TextClassificationPipeline):
    """`TextClassificationPipeline` around a [`BitNetModelForSequenceClassification`]."""


TASKS: dict[str, tuple[type[BitNetModel], type[Pipeline]]] = {
    "text-generation": (BitNetModelForCausalLM, BitNetTextGenerationPipeline),
    "text-classification": (BitNetModelForSequenceClassification, BitNetTextClassificationPipeline),
    "sentiment-analysis": (BitNetModelForSequenceClassification, BitNetTextClassificationPipeline),
}


# Options of `transformers.pipeline` that say how a model is loaded, and those of them that the pipeline itself reads too.
_OF_LOADING = ("dtype", "torch_dtype", "device_map", "config")
_OF_BOTH = ("revision", "token", "trust_remote_code")


def pipeline(
    task: str,
    model: str | Path | BitNetModel,
    tokenizer: Any = None,
    model_kwargs: dict[str, Any] | None = None,
    **kwargs: Any,
) -> Pipeline:
    """A pipeline whose model runs on the native decoder.

    Args:
        task: `"text-generation"`, `"text-classification"` or `"sentiment-analysis"`.
        model: a loaded model, or the folder or Hub id of one.
        tokenizer: default: the model's own, if `model` is a folder or id.
        model_kwargs: options of `from_pretrained` (`export`, `head_bits`, `num_threads`, ...).
        kwargs: as for `transformers.pipeline`.

    Raises:
        ValueError: another task, or a model without a tokenizer.
    """
    if task not in TASKS:
        raise ValueError(f"task {task!r} is not supported; choose one of {', '.join(TASKS)}.")
    model_class, pipeline_class = TASKS[task]
    if not isinstance(model, BitNetModel):
        loading = {name: kwargs.pop(name) for name in _OF_LOADING if name in kwargs}
        loading |= {name: kwargs[name] for name in _OF_BOTH if name in kwargs}
        loading |= model_kwargs or {}
        hub = {name: loading[name] for name in (*HUB_OPTIONS, "trust_remote_code") if name in loading}
        tokenizer = AutoTokenizer.from_pretrained(model, **hub) if tokenizer is None else tokenizer
        model = model_class.from_pretrained(model, **loading)
    if tokenizer is None:
        raise ValueError("a pipeline of a loaded model needs its tokenizer=.")
    kwargs.setdefault("pipeline_class", pipeline_class)
    make: Any = transformers_pipeline  # (whose overloads know no other models)
    return make(task, model=model, tokenizer=tokenizer, **kwargs)
