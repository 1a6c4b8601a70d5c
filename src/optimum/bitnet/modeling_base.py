"""What the models of the native backend share: finding, loading, falling back, saving and pushing."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import CommitInfo
from optimum.modeling_base import OptimizedModel
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from hf_bitdistill import push_to_hub
from hf_bitdistill.files.hub_errors import explained
from hf_bitdistill.files.model_folder import check_output, replace_model
from hf_bitdistill.files.weight_files import find_weight_files, folder_of
from hf_bitdistill.modeling.locate import find_model
from hf_bitdistill.modeling.preflight import read_config, read_hub_config
from hf_bitdistill.runtime import (
    NativeDecoder,
    NativeSource,
    NotAStudentError,
    Student,
    UnsupportedModelError,
    kv_dtype_of,
    load_and_keep,
    open_native_file,
)
from hf_bitdistill.runtime.native_decoder import KvDtype
from hf_bitdistill.verify import carry_answers, keep_answers

from .adapters import AdapterMethods
from .gguf import TemporaryImport, gguf_file_of
from .in_transformers import load_in_transformers
from .module_surface import ModuleSurface
from .reloading import Loaded, Reloading, check_device_map, check_dtype


logger = logging.getLogger(__name__)

# Of `save_pretrained`; transformers' own callers pass the last two.
_SAVE_OPTIONS = frozenset(
    {"max_shard_size", "dtype", "table_bits", "weight_bits", "is_main_process", "safe_serialization"}
)

HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


def _kv_dtype(kv_bits: int | None, kv_dtype: str | None) -> str:
    named = None if kv_bits is None else kv_dtype_of(kv_bits)
    if named is not None and kv_dtype not in (None, named):
        raise ValueError(f"kv_bits={kv_bits} is {named}, kv_dtype={kv_dtype!r} is not: give one of them.")
    return named or kv_dtype or "float16"


class BitNetModel(AdapterMethods, ModuleSurface, Reloading, OptimizedModel):
    """A ternary model on the native CPU decoder.

    Where that cannot compute a model, [`from_pretrained`] gives a subclass, an [`InTransformers`], which runs packed layers in transformers.

    Attributes:
        decoder: the native decoder; `None` in that subclass.
        model: the model of transformers in that subclass; `None` here.
        config: the model's configuration.
    """

    backend = "native"
    """What computes: `"native"` or `"transformers"`."""

    base_model_prefix = "bitnet_model"
    main_input_name = "input_ids"
    input_modalities = ("text",)
    head = ""  # of `hf_bitdistill.modeling.model_heads.HEADS`
    _auto_class = None

    def __init__(
        self,
        config: PreTrainedConfig,
        decoder: NativeDecoder | None,
        student: Student | None = None,
        preprocessors: Sequence[Any] = (),
    ):
        super().__init__(None, config, list(preprocessors))
        self.decoder = decoder
        self._opened_student = student
        self._source: Path | None = None
        self._loaded: Loaded | None = None

    @property
    def _student(self) -> Any:
        """The checkpoint, opened when something asks for more than its decoder.

        Raises:
            ValueError: it is gone, or was changed since the decoder was loaded.
        """
        if self._opened_student is None and self._loaded is not None:
            self._loaded.check()
            self._opened_student = Student(self._loaded.config, list(self._loaded.files), self.head)
        return self._opened_student

    # ---- what transformers asks of a model ----------------------------------------------------------------------

    @property
    def name_or_path(self) -> str:
        return self.config.name_or_path or ""

    def eval(self) -> BitNetModel:
        return self

    def train(self, mode: bool = True) -> BitNetModel:
        """Refuses training: weights are packed.

        Raises:
            ValueError: `mode` is true.
        """
        if mode:
            raise ValueError(
                "packed weights are not trainable: train the online student (hf_bitdistill) and export it."
            )
        return self

    @classmethod
    def can_generate(cls) -> bool:
        return False

    @classmethod
    def is_remote_code(cls) -> bool:
        return False

    def get_experts_implementation(self) -> dict[str, str]:
        return {}

    # ---- loading ------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls, model_id: str | Path, export: bool = False, gguf_file: str | None = None, **kwargs
    ) -> BitNetModel:
        """Load a ternary model.

        Args:
            model_id: folder or Hub id of a packed (offline) checkpoint; or a GGUF file, which is imported into a temporary folder first
                (see [`hf_bitdistill.importing.import_gguf`]; `bitdistill import gguf` does that once and for all).
            gguf_file: name of a GGUF file in that folder or repository.
            export: also accept an online student, which is packed while it is loaded, and the BitNet formats of
                transformers (`quant_method` "bitnet").
            num_threads: threads of a call; default: those of torch.
            head_bits: 32, 16, 8 or 4: how the embedding and the output head are kept in memory; default: what the checkpoint's
                config says, which is 16 unless it was packed for fewer. 16 is the checkpoint's own 16-bit dtype; of a float32
                checkpoint, the 16-bit dtype that changes it least.
            kv_bits: 32, 16 (default) or 8: how keys and values are kept in memory. 8 bits, with a scale for each head and position, take half
                of the memory of 16, and long contexts half of the time.
            kv_dtype: the same by name: `"float32"`, `"float16"` or `"int8"`.
            device_map: `"cpu"` or `"auto"`, both the CPU.
            dtype: `"auto"` or float32, in which the native decoder computes; where transformers computes, as there.
            adapter: folder or Hub id of a LoRA adapter to use from the start, see [`load_adapter`].
            trust_remote_code: passed to transformers, where it computes.
            native_file: load from the file in the kernels' own layout which an earlier load left, where there is one that is this
                checkpoint's, and leave one for the next load (of 64 MB and more). `False`: neither; so does
                HF_BITDISTILL_NATIVE_FILES=0 in the environment.
            config, subfolder, revision, cache_dir, force_download, local_files_only, token: as in transformers.

        Raises:
            NotAStudentError: no ternary checkpoint, or one that needs `export=True`.
            CheckpointError: a damaged file; names file and tensor.
            OSError: no such model; of the Hub, why it cannot be had, in one line.
            ValueError: an option has no meaning.
        """
        model_id = str(model_id)
        hub = {option: kwargs[option] for option in HUB_OPTIONS if kwargs.get(option) is not None}
        file = gguf_file_of(model_id, gguf_file, hub)
        if file is not None:
            return cls._from_gguf(file, **{name: value for name, value in kwargs.items() if name not in hub})
        if not os.path.isdir(model_id):
            return cls._from_hub(model_id, export, **kwargs)
        if kwargs.get("config") is None and not kwargs.get("subfolder"):
            find_model(model_id)
        config = kwargs.pop("config", None)
        if config is None:
            config = read_config(Path(model_id), kwargs.get("subfolder", ""), kwargs.get("trust_remote_code", False))
        elif not isinstance(config, PreTrainedConfig):
            options = {name: kwargs[name] for name in ("subfolder", "trust_remote_code") if name in kwargs}
            config = AutoConfig.from_pretrained(config, **options)
        # Not by Optimum's own, which would take what follows an "@" for a revision.
        return (cls._export if export else cls._from_pretrained)(model_id, config, **kwargs)

    @classmethod
    def _from_gguf(cls, file: Path, **kwargs) -> BitNetModel:
        if cls.head != "causal_lm":
            raise ValueError(f"{file}: a GGUF file holds a language model, which {cls.__name__} is not.")
        imported = TemporaryImport(file)
        # (Its folder goes with it, and so would a native file.)
        model = cls.from_pretrained(imported.folder, **{**kwargs, "native_file": False})
        model._imported, model.config.name_or_path = imported, str(file)
        return model

    @classmethod
    def _from_hub(cls, model_id: str, export: bool, **kwargs) -> BitNetModel:
        """As [`from_pretrained`]. Optimum's own would ask the Hub for its list of files, also where all is in the cache."""
        name, at, revision = model_id.partition("@")
        if at:
            model_id, kwargs["revision"] = name, revision
        hub = {option: kwargs[option] for option in HUB_OPTIONS if kwargs.get(option) is not None}
        config, trust_remote_code = kwargs.pop("config", None), kwargs.get("trust_remote_code", False)
        with explained(model_id, hub.get("revision"), hub.get("token")):
            if config is None:
                find_model(model_id, **hub)
                config = read_hub_config(model_id, trust_remote_code, **hub)
            elif not isinstance(config, PreTrainedConfig):
                config = AutoConfig.from_pretrained(config, trust_remote_code=trust_remote_code, **hub)
            return (cls._export if export else cls._from_pretrained)(model_id, config, **kwargs)

    @classmethod
    def _export(cls, model_id: str, config: PreTrainedConfig, **kwargs) -> BitNetModel:
        return cls._from_pretrained(model_id, config, may_export=True, **kwargs)

    @classmethod
    def _from_pretrained(
        cls,
        model_id: str,
        config: PreTrainedConfig,
        may_export: bool = False,
        num_threads: int | None = None,
        head_bits: int | None = None,
        kv_bits: int | None = None,
        kv_dtype: str | None = None,
        trust_remote_code: bool = False,
        device_map: Any = None,
        dtype: str | torch.dtype | None = None,
        torch_dtype: str | torch.dtype | None = None,
        adapter: str | os.PathLike | None = None,
        native_file: bool = True,
        **hub: Any,
    ) -> BitNetModel:
        check_device_map(cls.__name__, device_map)
        dtype = torch_dtype if dtype is None else dtype  # (the older name)
        unknown = sorted(set(hub) - set(HUB_OPTIONS))
        if unknown:
            raise TypeError(f"{cls.__name__}.from_pretrained got unknown options: {', '.join(unknown)}.")
        files = find_weight_files(model_id, config, **hub)
        kv_dtype = _kv_dtype(kv_bits, kv_dtype)
        student: Any = None
        source = NativeSource.of(config, files, cls.head) if native_file else None
        ready: Any = (
            open_native_file(config, files, cls.head, head_bits, kv_dtype, num_threads) if native_file else None
        )
        if ready is None:
            student = Student(config, files, cls.head)
        if (ready or student).needs_export and not may_export:
            raise NotAStudentError(f"{model_id} is not packed yet: load it with export=True, which packs it.")
        head_bits = head_bits or (ready or student).config.quantization_config.head_bits
        try:
            ready = ready or load_and_keep(student, source, head_bits, cast(KvDtype, kv_dtype), num_threads)
        except UnsupportedModelError as reason:
            logger.warning(
                f"{model_id}: the native decoder cannot compute this model: {reason}. It runs on packed layers in "
                "transformers instead, which is slower, in the checkpoint's dtype and on torch's threads, whatever kv_bits and "
                "num_threads say."
            )
            cls._read_generation_config(model_id, hub)  # refuses what transformers stumbles over
            options = {"trust_remote_code": trust_remote_code} | ({} if dtype is None else {"dtype": dtype})
            instance = cls._in_transformers(
                load_in_transformers(model_id, config, cls.head, student.needs_export, head_bits, {**options, **hub})
            )
        else:
            check_dtype(cls.__name__, dtype)
            instance = cls(ready.config, decoder=ready.decoder, student=student)
            instance._finish_loading(ready.extras)
        instance._source = folder_of(files[0])
        again: dict[str, Any] = {
            "native_file": native_file,
            "num_threads": num_threads,
            "head_bits": head_bits,
            "kv_dtype": kv_dtype,
            "export": may_export,
        }
        instance._loaded = Loaded.of(files, config, {**again, "trust_remote_code": trust_remote_code})
        instance._load_generation_config(model_id, hub)
        if adapter is not None:
            # (A revision and a subfolder are the model's.)
            instance.load_adapter(adapter, **{key: hub[key] for key in hub if key not in ("revision", "subfolder")})
        return instance

    @classmethod
    def _in_transformers(cls, model: PreTrainedModel) -> BitNetModel:
        """A model of the same head that transformers computes. Each public class has its own."""
        raise NotImplementedError

    def _finish_loading(self, extras: Mapping[str, Tensor]) -> None:
        """Take what the decoder does not have, by the names in the checkpoint."""

    def _load_generation_config(self, model_id: str, hub: dict[str, Any]) -> None:
        """Only of models that generate."""

    @classmethod
    def _read_generation_config(cls, model_id: str, hub: dict[str, Any]) -> Any:
        """Only of models that generate."""

    # ---- saving -------------------------------------------------------------------------------------------------

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> None:
        """Write the packed checkpoint: what it was loaded from, or what the export packed.

        It loads with this class and with transformers (`import hf_bitdistill` first).

        Args:
            max_shard_size: largest file, e.g. `"5GB"`.
            dtype, table_bits, weight_bits: how weights are stored, see [`hf_bitdistill.pack`]; default: as it is stored, and as `pack` does by
                default where the export packed it. Of a model that transformers computes: as it is in memory, nothing else.
            repo_id, private, token, commit_message, revision, ...: of [`push_to_hub`], with `push_to_hub=True`; `repo_id` is the
                folder's name by default.

        An older model in the folder is replaced at once, when the new one is complete.

        Raises:
            TypeError: an option is not known.
            ValueError: `save_directory` is the folder the model was loaded from, or lies inside or around it.
            NotADirectoryError: it is a file.
        """
        folder = Path(save_directory)
        check_output(folder, model=self._source)
        unknown = sorted(set(kwargs) - _SAVE_OPTIONS)
        if unknown and not push_to_hub:
            raise TypeError(f"{type(self).__name__}.save_pretrained got unknown options: {', '.join(unknown)}.")
        if self._active_adapters and self._adapters_enabled:
            names = ", ".join(self._active_adapters)
            logger.warning(f"{folder} gets the base model: the adapters in use ({names}) are files of their own.")
        max_shard_size = kwargs.pop("max_shard_size", "50GB")
        stored = {
            name: kwargs.pop(name) for name in ("dtype", "table_bits", "weight_bits") if kwargs.get(name) is not None
        }
        with replace_model(folder) as staging:
            for preprocessor in self.preprocessors:
                preprocessor.save_pretrained(staging)
            self._save_pretrained(staging, max_shard_size, **stored)
        carries = not stored and self._saves_what_it_read
        if self.quantization_config is not None and not (
            carries and self._source is not None and carry_answers(self._source, folder)
        ):
            tokenizers = (each for each in self.preprocessors if isinstance(each, PreTrainedTokenizerBase))
            keep_answers(folder, next(tokenizers, None))
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", folder.name), max_shard_size=max_shard_size, **kwargs)

    def _save_pretrained(self, save_directory: Path, max_shard_size: str = "50GB", **stored: Any) -> None:
        # Read from the files again: what is in memory may have fewer bits (head_bits).
        self._student.save(save_directory, max_shard_size, **stored)

    @property
    def _saves_what_it_read(self) -> bool:
        """Whether the saved weights are those of the files, as these hold them."""
        return not self._student.needs_export

    def push_to_hub(self, repo_id: str, **options: Any) -> CommitInfo | None:
        """Publish the packed checkpoint: see [`~hf_bitdistill.push_to_hub`] for the options, which are those of a model of transformers,
        and for what is raised. Returns the commit; as a string its address."""
        return push_to_hub(self, repo_id, **options)

    @property
    def quantization_config(self):
        """The student's [`BitNetConfig`], `None` for a model that transformers' own layers compute."""
        return self.config.quantization_config
