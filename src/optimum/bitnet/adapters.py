"""LoRA adapters of a native model: one packed base, many tasks."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, cast

from hf_bitdistill.runtime import LowRank, NativeDecoder


if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .modeling_base import BitNetModel


class NativeAdapters:
    """Adapters that were loaded, and the decoders that apply them: one for each choice of adapters, all of the same weights.

    Args:
        model: on the native decoder.
    """

    def __init__(self, model: BitNetModel):
        self._loaded: dict[str, dict[str, LowRank]] = {}
        self.bind(model)

    def bind(self, model: BitNetModel) -> None:
        """Use the decoder of `model`, which has no adapters yet: after this was copied or unpickled."""
        modules = model._student.model
        decoder = model.decoder
        names = {p.module for layer in decoder.spec.layers for p in layer.projections}
        layers: dict[str, Any] = {name: modules.get_submodule(name) for name in names}
        self._shapes = {name: (layer.out_features, layer.in_features) for name, layer in layers.items()}
        self._decoders: dict[tuple[str, ...], NativeDecoder] = {(): decoder}

    def __getstate__(self) -> dict[str, Any]:
        return {"_loaded": self._loaded, "_decoders": {}}

    @property
    def bound(self) -> bool:
        return bool(self._decoders)

    @property
    def names(self) -> list[str]:
        return list(self._loaded)

    def load(self, adapter: str | os.PathLike, name: str, **hub: Any) -> None:
        from hf_bitdistill.adapters.adapter_files import load_low_rank

        self._loaded[name] = load_low_rank(adapter, self._shapes, **hub)

    def delete(self, name: str) -> None:
        del self._loaded[name]
        self._decoders = {names: decoder for names, decoder in self._decoders.items() if name not in names}

    def decoder(self, names: tuple[str, ...]) -> NativeDecoder:
        if names not in self._decoders:
            from hf_bitdistill.adapters.adapter_files import together

            self._decoders[names] = self._decoders[()].adapted(together([self._loaded[name] for name in names]))
        return self._decoders[names]


class PeftAdapters:
    """The same on packed layers in transformers, where PEFT does it."""

    def __init__(self, model: PreTrainedModel):
        self._model = model
        self._peft: Any = None  # a `PeftModel`, once there is an adapter

    @property
    def names(self) -> list[str]:
        return [] if self._peft is None else list(self._peft.peft_config)

    def load(self, adapter: str | os.PathLike, name: str, **hub: Any) -> None:
        from peft import PeftModel

        if self._peft is None:
            self._peft = PeftModel.from_pretrained(self._model, os.fspath(adapter), name, **hub)
        else:
            self._peft.load_adapter(os.fspath(adapter), name, **hub)

    def delete(self, name: str) -> None:
        self._peft.delete_adapter(name)

    def use(self, names: tuple[str, ...]) -> None:
        if self._peft is not None and names:
            self._peft.base_model.enable_adapter_layers()
            self._peft.base_model.set_adapter(list(names), inference_mode=True)
        elif self._peft is not None:
            self._peft.base_model.disable_adapter_layers()


class AdapterMethods:
    """Adapters of a `BitNetModel`, under the names that transformers' models have for them.

    What LoRA adds is computed in float32 beside the ternary product; the base is not changed and not copied. A cache belongs to the
    adapters that it was filled with.
    """

    decoder: Any
    _adapters: Any = None  # `NativeAdapters` or `PeftAdapters`
    _active_adapters: tuple[str, ...] = ()
    _adapters_enabled = True

    def load_adapter(self, peft_model_id: str | os.PathLike, adapter_name: str = "default", **hub: Any) -> None:
        """Load a LoRA adapter that PEFT saved, and use it instead of those that were active.

        Args:
            peft_model_id: folder or Hub id.
            adapter_name: what to call it.
            hub: `revision`, `token`, `subfolder`, ... of an id.

        Raises:
            AdapterError: the native decoder cannot apply it; names the option or the tensor.
            ValueError: there is one of that name.
        """
        if self._adapters is None:
            self._adapters = self._new_adapters()
        if adapter_name in self._adapters.names:
            raise ValueError(
                f"there is an adapter {adapter_name!r} already: delete_adapter it, or choose another name."
            )
        self._adapters.load(peft_model_id, adapter_name, **hub)
        self.set_adapter(adapter_name)

    def set_adapter(self, adapter_name: str | list[str]) -> None:
        """Use one of the loaded adapters, or several, whose changes add up.

        Raises:
            ValueError: there is none of that name.
        """
        names = (adapter_name,) if isinstance(adapter_name, str) else tuple(dict.fromkeys(adapter_name))
        self._check_loaded(names)
        self._active_adapters = names
        self._adapters_enabled = True
        self._use_adapters()

    def active_adapters(self) -> list[str]:
        """Names of those that are in use, or would be if they were not disabled."""
        return list(self._active_adapters)

    def disable_adapters(self) -> None:
        """Use the base model alone, until [`enable_adapters`] or [`set_adapter`]."""
        self._adapters_enabled = False
        self._use_adapters()

    def enable_adapters(self) -> None:
        """Use the active adapters again."""
        self._adapters_enabled = True
        self._use_adapters()

    def delete_adapter(self, adapter_names: str | list[str]) -> None:
        """Forget adapters.

        Raises:
            ValueError: there is none of that name.
        """
        names = (adapter_names,) if isinstance(adapter_names, str) else tuple(adapter_names)
        self._check_loaded(names)
        for name in names:
            self._adapters.delete(name)
        self._active_adapters = tuple(name for name in self._active_adapters if name not in names)
        self._use_adapters()

    def _check_loaded(self, names: tuple[str, ...]) -> None:
        loaded = [] if self._adapters is None else self._adapters.names
        missing = [name for name in names if name not in loaded]
        if missing or not names:
            raise ValueError(f"no adapter {', '.join(map(repr, missing))} was loaded; there are: {loaded}.")

    def _check_no_adapters(self) -> None:
        if self._active_adapters and self._adapters_enabled:
            raise ValueError(
                f"the adapters {', '.join(self._active_adapters)} are in use, and no part of the weights: disable_adapters() first."
            )

    def _use_adapters(self) -> None:
        if self._adapters is not None:
            self._apply_adapters(self._active_adapters if self._adapters_enabled else ())

    def _new_adapters(self) -> NativeAdapters | PeftAdapters:
        return NativeAdapters(cast("BitNetModel", self))

    def _apply_adapters(self, names: tuple[str, ...]) -> None:
        self.decoder = self._adapters.decoder(names)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Of a copy or a pickle: a model that was loaded again gets the adapters of the one it is a copy of.
        self.__dict__.update(state)
        if isinstance(self._adapters, NativeAdapters) and not self._adapters.bound:
            self._adapters.bind(cast("BitNetModel", self))
            self._use_adapters()
