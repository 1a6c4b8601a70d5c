"""Models of the native backend that are made again from their files: copies, pickles, and floats."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from hf_bitdistill.files.weight_files import folder_of
from hf_bitdistill.modeling.model_heads import auto_class

from .gguf import TemporaryImport


# What a copy takes over from the object beside its files.
_STATE = ("config", "generation_config", "preprocessors", "_adapters", "_active_adapters", "_adapters_enabled")


@dataclass(frozen=True)
class Loaded:
    """How a model was loaded.

    Attributes:
        folder: where its files are.
        config: of the checkpoint, as it was given or read.
        options: of `from_pretrained`.
        files: weight file -> size and time of its last change.
    """

    folder: str
    config: PreTrainedConfig
    options: dict[str, Any]
    files: dict[str, tuple[int, int]]

    @classmethod
    def of(cls, files: Sequence[str], config: PreTrainedConfig, options: dict[str, Any]) -> Loaded:
        """Of the weight files that were just read."""
        paths = [os.path.abspath(file) for file in files]  # whatever the working directory becomes
        return cls(str(folder_of(paths[0])), config, options, {path: _state(path) for path in paths})

    def check(self) -> None:
        """Refuse files that are not what was loaded.

        Raises:
            ValueError: a weight file is gone or was changed; names it.
        """
        for file, state in self.files.items():
            if not os.path.isfile(file):
                raise ValueError(
                    f"{file} is gone, of which the model would be loaded again: load it from where it is now."
                )
            if _state(file) != state:
                raise ValueError(
                    f"{file} was changed since the model was loaded, so that what is loaded again would be another one: use from_pretrained."
                )


def _state(file: str) -> tuple[int, int]:
    found = os.stat(file)
    return found.st_size, found.st_mtime_ns


def _load(cls: Any, loaded: Loaded) -> Any:
    """Called by `pickle` and `copy`, with the arguments of [`Reloading.__reduce_ex__`]."""
    return cls.from_pretrained(loaded.folder, config=copy.deepcopy(loaded.config), **loaded.options)


class Reloading:
    """Copies, pickles and floats of a model whose weights are in the native library."""

    head: str
    _student: Any  # a `Student`
    _loaded: Any  # a `Loaded`, of what was loaded from files
    _check_no_adapters: Callable[[], None]
    config: Any
    _imported: TemporaryImport | None = None

    def __reduce_ex__(self, protocol: Any) -> Any:
        """`copy.deepcopy` and `pickle` load the model again from its files, which therefore have to be there, unchanged; a pickle holds no
        weights.

        Raises:
            ValueError: a file is gone or was changed.
        """
        if self._imported is not None:
            # (Its folder is removed with this object, and a copy would still read it.)
            raise ValueError(
                f"this {type(self).__name__} was imported from {self._imported.file} into a folder that goes with it: to copy it, use "
                "`bitdistill import gguf`, and load the folder."
            )
        if self._loaded is None:
            raise ValueError(
                f"this {type(self).__name__} was not loaded from files, of which it could be loaded again."
            )
        self._loaded.check()
        return _load, (type(self), self._loaded), {name: vars(self)[name] for name in _STATE if name in vars(self)}

    def __copy__(self) -> Any:
        """A second object around the same weights."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    def dequantize(self, dtype: str | torch.dtype | None = None) -> PreTrainedModel:
        """A model of transformers in floats, loaded from the same files: the effective weights `gamma * W_t` in linear layers behind their
        SubLNs, trainable, on the CPU. It computes the same but for two roundings: activations are not rounded to 8 bits, and weights are
        rounded to its dtype. This object stays what it is.

        Args:
            dtype: of its parameters; default: that of the checkpoint.

        Raises:
            ValueError: a file is gone or was changed, or an adapter is in use.
        """
        self._check_no_adapters()
        self._loaded.check()
        if not self._student.needs_export:
            return self._load_floats(self._loaded.folder, dtype)
        with TemporaryDirectory() as folder:
            packed = Path(folder) / "packed"
            self._student.save(packed, weight_bits=self._student.config.quantization_config.weight_bits)
            model = self._load_floats(str(packed), dtype)
        if hasattr(self, "generation_config"):
            model.generation_config = copy.deepcopy(self.generation_config)
        model.name_or_path = model.config.name_or_path = self.config.name_or_path
        return model

    def _load_floats(self, folder: str, dtype: str | torch.dtype | None) -> PreTrainedModel:
        config = copy.deepcopy(self._student.config)
        # (Asked for in memory only: rounded tables would stay rounded.)
        config.quantization_config = {**config.quantization_config.to_dict(), "head_bits": 16}
        trust = self._loaded.options["trust_remote_code"]
        model = auto_class(self.head).from_pretrained(
            folder, config=config, dtype=dtype or "auto", trust_remote_code=trust
        )
        return model.dequantize()


def check_device_map(name: str, device_map: Any) -> None:
    """Refuse a `device_map` that is not the CPU.

    Raises:
        ValueError: says what to do instead.
    """
    places = device_map.values() if isinstance(device_map, dict) else [device_map]
    if not all(place is None or str(place) in ("cpu", "auto") for place in places):
        raise ValueError(
            f"device_map={device_map!r}: {name} computes on the CPU ('cpu', or 'auto'). On another device transformers computes with packed "
            "layers: `import hf_bitdistill`, then from_pretrained of AutoModelForCausalLM."
        )


def check_dtype(name: str, dtype: str | torch.dtype | None) -> None:
    """Refuse a `dtype` that the native decoder does not compute in.

    Raises:
        ValueError: says what there is instead.
    """
    if dtype not in (None, "auto", "float32", torch.float32):
        raise ValueError(
            f"dtype={dtype!r}: {name} computes in float32, whatever the checkpoint's dtype: leave it out. head_bits and kv_bits say how tables and "
            "cache are kept in memory."
        )
