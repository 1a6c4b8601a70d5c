"""transformers' own server with the native decoder in it: the parts of it that know how a model is loaded and on which thread it runs."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel
from transformers import __version__ as transformers_version
from transformers.cli.serve import Serve
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.utils import BaseGenerateManager, GenerateManager, GenerationState

from hf_bitdistill._compat import generation_options
from hf_bitdistill.config import ternary_method
from hf_bitdistill.runtime import ContextLengthError, kv_dtype_of

from .modeling_decoder import BitNetModelForCausalLM


logger = logging.getLogger(__name__)

# More are accepted and wait: each has a cache of its own.
_AT_ONCE = 8
_SECONDS_TO_FINISH = 5
_REPLACED = ("_model_manager", "_generation_state", "server")


class ServedModel(BitNetModelForCausalLM):
    """A model for several clients at once: they take turns, a forward pass each, so that all CPUs work on one at a time."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._turn = threading.Lock()

    @functools.wraps(BitNetModelForCausalLM.forward)  # (`generate` looks at the names of its arguments)
    def forward(self, *args: Any, **kwargs: Any):  # type: ignore[override]  # the same, by `wraps`
        with self._turn:
            return super().forward(*args, **kwargs)


class NativeModelManager(ModelManager):
    """transformers' manager of models, which loads ternary ones on the native decoder.

    Args:
        native: whether it may; else packed layers in transformers compute.
        kv_bits: of the native decoder, as in `from_pretrained`.
        options: those of `ModelManager`.

    Raises:
        ValueError: `quantization` of a model that is ternary.
    """

    def __init__(self, native: bool, kv_bits: int = 16, **options: Any):
        self.native, self.kv_bits = native, kv_bits
        super().__init__(**options)

    def _load_model(self, model_id_and_revision: str, *args: Any, **kwargs: Any) -> PreTrainedModel:
        # (A folder may have an "@" in its name; transformers before 5.24 adds a revision to its name all the same.)
        model_id, _, revision = model_id_and_revision.rpartition("@")
        if os.path.exists(model_id_and_revision) or not model_id:
            model_id, revision = model_id_and_revision, ""
        hub = {"revision": revision} if revision and not os.path.isdir(model_id) else {}
        if kwargs.get("gguf_file") or not self._is_ternary(model_id, hub):
            return super()._load_model(model_id_and_revision, *args, **kwargs)
        if self.quantization is not None:
            raise ValueError(f"{model_id} is quantized already: leave --quantization out.")
        if not self.native:
            return super()._load_model(model_id_and_revision, *args, **kwargs)
        options = {"dtype": self.dtype, "trust_remote_code": self.trust_remote_code}
        return ServedModel.from_pretrained(model_id, export=True, kv_bits=self.kv_bits, **options, **hub)

    def _is_ternary(self, model_id: str, hub: dict[str, str]) -> bool:
        config = AutoConfig.from_pretrained(model_id, trust_remote_code=self.trust_remote_code, **hub)
        return ternary_method(config) is not None

    def _load_processor(self, model_id_and_revision: str, *args: Any, **kwargs: Any):
        processor = super()._load_processor(model_id_and_revision, *args, **kwargs)
        if getattr(processor, "chat_template", None) is None:
            logger.warning(
                f"{model_id_and_revision} has no chat template: /v1/completions answers, /v1/chat/completions cannot."
            )
        return processor


class TakingTurns(GenerateManager):
    """Each request on a thread of its own. The native decoder keeps nothing of a thread, unlike what transformers' single one is for."""

    def __init__(self):
        self._places = threading.Semaphore(_AT_ONCE)

    def submit(self, fn: Callable, *args: Any, **kwargs: Any) -> Future:
        future: Future = Future()

        def run() -> None:
            with self._places:
                try:
                    future.set_result(fn(*args, **kwargs))
                except BaseException as error:
                    future.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        return future

    def async_submit(self, fn: Callable, *args: Any, **kwargs: Any) -> asyncio.Future:
        return asyncio.wrap_future(self.submit(fn, *args, **kwargs))


class NativeGenerationState(GenerationState):
    """Gives native models their [`TakingTurns`]."""

    def __init__(self, models: ModelManager, **options: Any):
        super().__init__(**options)
        self._models = models
        self._taking_turns = TakingTurns()

    def get_manager(self, model_id: str, use_cb: bool = False) -> BaseGenerateManager:
        loaded = self._models.loaded_models.get(model_id)
        if loaded is not None and isinstance(loaded.model, ServedModel):
            return self._taking_turns
        return super().get_manager(model_id, use_cb=use_cb)


class NativeServe(Serve):
    """`transformers serve`: its options, its endpoints, with the native decoder wherever a ternary model is computed on the CPU.

    Where the decoder cannot compute a model, or `continuous_batching`, `compile` or `attn_implementation` asks for layers of torch,
    packed layers in transformers do.

    Args:
        force_model: folder or Hub id of the model to serve, loaded before the server listens; `None`: each request names one.
        kv_bits: 32, 16 or 8, as in `from_pretrained`.
        options: those of `transformers.cli.serve.Serve`.

    Raises:
        ValueError: `kv_bits` has no meaning.
        RuntimeError: the installed transformers builds its server in another way.
    """

    def __init__(self, force_model: str | None = None, kv_bits: int = 16, **options: Any):
        kv_dtype_of(kv_bits)
        unknown = set(_REPLACED) - set(Serve.__init__.__code__.co_names)
        if unknown:
            raise RuntimeError(
                f"transformers {transformers_version} builds its server without {', '.join(sorted(unknown))}, which this version of hf-bitdistill "
                "does not know: `bitdistill exec -- transformers serve` works, on packed layers."
            )
        self._force_model, self._kv_bits, self._options = force_model, kv_bits, options
        super().__init__(None, **options)

    # `Serve` makes these and hands them on in one go. What it makes gives way to ours here.

    @property
    def _model_manager(self) -> ModelManager:
        return self._models

    @_model_manager.setter
    def _model_manager(self, stock: ModelManager) -> None:
        known = inspect.signature(ModelManager.__init__).parameters
        options = {name: value for name, value in self._options.items() if name in known}
        native = _may_be_native(self._options)
        self._models = NativeModelManager(native, self._kv_bits, **options, force_model=self._force_model)

    @property
    def _generation_state(self) -> GenerationState:
        return self._generations

    @_generation_state.setter
    def _generation_state(self, stock: GenerationState) -> None:
        self._generations = NativeGenerationState(self._models, **generation_options(stock))

    @property
    def server(self):
        """uvicorn's server."""
        return self._server

    @server.setter
    def server(self, server: Any) -> None:
        server.config.timeout_graceful_shutdown = _SECONDS_TO_FINISH  # (else Ctrl-C waits for whole answers)
        server.config.app.add_exception_handler(ContextLengthError, _too_long)
        self._server = server


def _too_long(request: Any, error: Exception):
    """The answer to a prompt that does not fit, in the form of OpenAI's."""
    from fastapi.responses import JSONResponse

    details = {"message": str(error), "type": "invalid_request_error", "code": "context_length_exceeded"}
    return JSONResponse({"error": details}, status_code=400)


def _may_be_native(options: dict[str, Any]) -> bool:
    device = options.get("device", "auto")
    on_cpu = device == "cpu" or (device == "auto" and not torch.accelerator.is_available())
    return on_cpu and not any(options.get(name) for name in ("continuous_batching", "compile", "attn_implementation"))
