"""What a checkpoint's config claims against what its files hold, before any model is built from that config.

A thousand bytes of JSON can ask for a million layers. A model of that many takes minutes and gigabytes even on the meta device, and
only then do the checks of [`hf_bitdistill.modeling.checkpoint`], which compare tensor by tensor, get their turn. So these necessary
conditions come first. They hold for every architecture, because they know of none: a layer or an expert has a tensor of its
own, or a row in one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.utils import CONFIG_NAME

from .._compat import cached_file_or_none, commit_of
from ..config import QUANT_METHOD, BitNetConfig
from ..files.json_files import read_json, shorten
from ..files.tensor_headers import CheckpointError, tensors_of
from ..files.weight_files import local_weight_files
from ..nn.experts import expert_projections, is_fused_experts


# What costs a second at most is left to the exact checks, so that no unusual model is refused here.
_FEW_LAYERS, _FEW_EXPERTS = 256, 1024
# Where the files cannot be found yet; four times as many layers as the deepest network published.
_MOST_LAYERS = 4096
# Of a layer's sizes, so that no product of them overflows.
_LARGEST = 1 << 24
_MOST_LABELS = 1_000_000
# Tables that a model computes for itself and no file holds: masks, sines.
_COMPUTED_BYTES = 1 << 30
# Of an expert's matrix in full precision (4 x 4 in float32).
_EXPERT_BYTES = 64

_LAYERS = re.compile(r"(?!max_).*layers?")
_EXPERTS = re.compile(r".*experts")
# Sizes whose negative value ends in an error deep inside a model's constructor, and those whose zero does too.
_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")
_POSITIVE = {"vocab_size", "hidden_size", "num_attention_heads"}
_EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps")
_WINDOWS = ("sliding_window", "attention_chunk_size")
_EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts")
_ACTIVATIONS = ("hidden_act", "hidden_activation", "activation_function")


@dataclass(frozen=True)
class Contents:
    """Of some safetensors files: how many tensors, the largest dimension of one that is not empty, and the files' size."""

    files: tuple[str, ...]
    tensors: int
    largest: int
    nbytes: int


def read_contents(files: Iterable[str | Path]) -> Contents:
    """Sum up the headers of `files`.

    Raises:
        CheckpointError: a file is missing, no regular file, or not safetensors.
    """
    names = tuple(str(file) for file in files)
    count, largest = 0, 0
    for file in names:
        for _, _, shape in tensors_of(file):
            count += 1
            if prod(shape):
                largest = max(largest, *shape, 1)
    return Contents(names, count, largest, sum(os.path.getsize(file) for file in names))


def check_config_file(file: Path) -> None:
    """Refuse a `config.json` that no config class should be asked to read.

    Raises:
        CheckpointError: it is no JSON object, has `quantization_config` of a wrong type, or asks for long lists; names file and key.
    """
    content = read_json(file)
    if not isinstance(content.get("quantization_config", {}), dict):
        found = shorten(content["quantization_config"])
        raise CheckpointError(f"{file}: 'quantization_config' must be an object, not {found}.")
    quantization = content.get("quantization_config", {})
    if quantization.get("quant_method") == QUANT_METHOD:
        try:
            BitNetConfig.from_dict(quantization)
        except ValueError as error:
            raise CheckpointError(f"{file}: {error}") from None
    # Some config classes make a list of as many layers, all of them a name for each label.
    for part in (content, *(value for value in content.values() if isinstance(value, dict))):
        for key, value in part.items():
            most = _MOST_LABELS if key == "num_labels" else _LARGEST if _LAYERS.fullmatch(key) else None
            if most is not None and isinstance(value, int) and value > most:
                raise CheckpointError(f"{file}: {key}={shorten(value)} must be at most {most}.")


def read_config(folder: Path, subfolder: str = "", trust_remote_code: bool = False) -> PreTrainedConfig:
    """The config of a local folder, or of its subfolder if that has one.

    Raises:
        OSError: there is none.
        CheckpointError: it is no JSON object, or transformers makes no config of it; names the file.
    """
    places = [folder / subfolder / CONFIG_NAME, folder / CONFIG_NAME]
    file = next((place for place in places if place.exists()), None)
    if file is None:
        raise OSError(f"{folder} has no {CONFIG_NAME}.")
    return _checked_config(file, file.parent, trust_remote_code=trust_remote_code)


def read_hub_config(name: str, trust_remote_code: bool = False, **hub: Any) -> PreTrainedConfig:
    """The config of a model on the Hub, or of its subfolder if that has one.

    Args:
        hub: `revision`, `subfolder`, `cache_dir`, `token`, ... of `from_pretrained`.

    Raises:
        As [`read_config`].
    """
    file, above = None, {**hub, "subfolder": ""}
    for where in (hub, above):
        file = cached_file_or_none(name, CONFIG_NAME, **where)
        if file is not None:
            return _checked_config(Path(file), name, trust_remote_code=trust_remote_code, **where)
    raise OSError(f"{name} has no {CONFIG_NAME}.")


def _checked_config(file: Path, name: str | Path, **options: Any) -> PreTrainedConfig:
    check_config_file(file)
    try:
        return AutoConfig.from_pretrained(name, **options)
    except OSError:
        raise
    except Exception as error:  # whatever a config class raises for values that it does not expect
        raise CheckpointError(f"{file}: {describe_error(error)}") from error


def _cached_folder(name: str, commit: str | None) -> Path | None:
    """Where the default cache holds a model of the Hub: the commit, which older versions of transformers tell, or the main revision. (No
    hook is told another cache.)"""
    try:
        file = cached_file_or_none(name, CONFIG_NAME, offline=True, local_files_only=True, revision=commit)
    except (OSError, ValueError):
        return None
    return None if file is None else Path(file).parent


def folder_of(config: PreTrainedConfig) -> Path | None:
    """Where the checkpoint lies that a config was read from, its folder or the Hub's cache; `None` where that is not to be found. Nothing is
    downloaded."""
    name = config.name_or_path
    if not name:
        return None
    return Path(name) if os.path.isdir(name) else _cached_folder(name, commit_of(config))


def check_before_building(config: PreTrainedConfig) -> bool:
    """Check the config that a model is about to be built from, and the checkpoint it was read from.

    Returns:
        Whether the checkpoint's files were found: of a model of the Hub only once transformers has downloaded them.

    Raises:
        CheckpointError: an index is damaged or leads out of the folder, a file is not safetensors, a size in the config means nothing,
            or the config claims more layers or experts than the files can hold.
    """
    name = config.name_or_path or ""
    folder = folder_of(config)
    where = str(folder / CONFIG_NAME) if folder else f"the config of {name or type(config).__name__}"
    check_sizes(config, where)
    files = local_weight_files(folder, getattr(config, "transformers_weights", None)) if folder else []
    # (Shards that are missing are told of where it is certain that they are needed: the caller may give a config of another folder.)
    if folder and files and all(os.path.lexists(file) for file in files):
        check_claims(config, read_contents(files), where, folder / CONFIG_NAME)
        return True
    for key, value, _ in _claims(config, None):
        if _LAYERS.fullmatch(key) and value > _MOST_LAYERS:
            raise CheckpointError(f"{where}: {key}={value} is more layers than any model has ({_MOST_LAYERS}).")
    return False


def check_claims(config: PreTrainedConfig, contents: Contents, where: str, config_file: Path | None = None) -> None:
    """Refuse a config that claims more layers or experts than the files have tensors.

    Args:
        where: what the message calls the config.
        config_file: of the checkpoint; a claim counts only if it is in there too, because a config that a caller made or changed need
            not belong to the files beside it. `None`: `config` is the files' own.

    Raises:
        CheckpointError: naming the files, the key and the numbers.
    """
    for key, value, written in _claims(config, config_file):
        layers = _LAYERS.fullmatch(key) is not None
        most = contents.tensors if layers else max(contents.tensors, contents.largest)
        if written and value > max(most, _FEW_LAYERS if layers else _FEW_EXPERTS):
            what = "layers" if layers else "experts"
            raise CheckpointError(
                f"{', '.join(contents.files)}: {contents.tensors} tensors, the largest dimension {contents.largest}, cannot be "
                f"{value} {what}, which {where} claims ({key})."
            )


def _claims(config: PreTrainedConfig, file: Path | None) -> Iterator[tuple[str, int, bool]]:
    """Numbers of layers and experts in `config` and its parts: key, value, and whether `file` says the same."""
    written: dict[str, Any] | None = None if file is None or file.exists() else {}
    for section, part in _sections(config):
        for key, value in vars(part).items():
            if type(value) is int and (_LAYERS.fullmatch(key) or _EXPERTS.fullmatch(key)):
                if file is not None and written is None and value > _FEW_LAYERS:
                    written = read_json(file)
                stored = written if not section else (written or {}).get(section)
                yield key, value, file is None or (isinstance(stored, dict) and stored.get(key) == value)


def _sections(config: PreTrainedConfig) -> Iterator[tuple[str, PreTrainedConfig]]:
    yield "", config
    for name in config.sub_configs:
        part = getattr(config, name, None)
        if isinstance(part, PreTrainedConfig):
            yield name, part


def _value(config: PreTrainedConfig, key: str) -> Any:
    """What a config says for the whole model; `None` where it says nothing, or something else for each layer."""
    try:
        return getattr(config, key, None)
    except Exception:  # transformers' own class for an attribute of layers, which older versions do not have
        return None


def check_sizes(config: PreTrainedConfig, where: str) -> None:
    """Refuse sizes that no model of any architecture has, and an activation that transformers does not have.

    Args:
        where: what the message starts with.

    Raises:
        CheckpointError: naming key and value.
    """
    text = config.get_text_config(decoder=True)
    sizes = {key: _value(text, key) for key in _SIZES}
    sizes = {key: value for key, value in sizes.items() if isinstance(value, (int, float))}
    for key, value in sizes.items():
        least = 1 if key in _POSITIVE else 0  # (a zero may stand for "derived" or "none")
        if not least <= value <= _LARGEST:
            raise CheckpointError(f"{where}: {key}={shorten(value)} must be between {least} and {_LARGEST}.")
    width = sizes.get("num_attention_heads", 1) * sizes.get("head_dim", 1)
    if width > _LARGEST:
        raise CheckpointError(f"{where}: num_attention_heads * head_dim = {width} must be at most {_LARGEST}.")
    for key in _EPSILONS:
        eps = _value(text, key)
        if isinstance(eps, (int, float)) and not 0 <= eps < 1:
            raise CheckpointError(f"{where}: {key}={shorten(eps)} must be a number between 0 and 1.")
    for key in _WINDOWS:
        window = _value(text, key)
        entries = window if isinstance(window, (list, tuple)) else [window]
        layers = _value(text, "num_hidden_layers") if entries is window else 1
        if len(entries) != layers or not all(
            entry is None or (isinstance(entry, int) and entry >= 0) for entry in entries
        ):
            raise CheckpointError(f"{where}: {key}={shorten(window)} must be a number of positions.")
    experts = next((n for key in _EXPERT_COUNTS if isinstance(n := _value(text, key), int)), None)
    chosen = _value(text, "num_experts_per_tok")
    if experts and isinstance(chosen, int) and not 0 <= chosen <= experts:
        raise CheckpointError(
            f"{where}: num_experts_per_tok={chosen} must be between 0 and the number of experts, {experts}."
        )
    dtype = _value(text, "dtype")
    if isinstance(dtype, str):  # (as `from_pretrained(..., dtype="float32")` puts it there)
        dtype = getattr(torch, dtype, dtype)
    if not (dtype is None or isinstance(dtype, dict) or (isinstance(dtype, torch.dtype) and dtype.is_floating_point)):
        raise CheckpointError(f"{where}: dtype={shorten(dtype)} must be a floating-point type.")
    for key in _ACTIVATIONS:
        name = _value(text, key)
        if isinstance(name, str) and name not in ACT2FN:
            raise CheckpointError(f"{where}: {key}={shorten(name)} is no activation of transformers.")


def build_on_meta(auto_class: Any, config: PreTrainedConfig, files: list[str]) -> PreTrainedModel:
    """The model of a student's files on the meta device, after all checks of this module.

    Args:
        auto_class: of transformers, with `from_config`.
        config: without `quantization_config`.

    Raises:
        CheckpointError: the config claims what the files do not hold, or transformers cannot build a model from it; names file, key
            and numbers where they are known.
    """
    where = str(Path(files[0]).parent / CONFIG_NAME)
    check_sizes(config, where)
    check_claims(config, read_contents(files), where)
    try:
        with torch.device("meta"):
            model = auto_class.from_config(config)
    except Exception as error:  # whatever a constructor raises for values that it does not expect
        raise CheckpointError(f"{where}: {describe_error(error, config)}") from error
    check_built(model, files)
    return model


def describe_error(error: Exception, config: PreTrainedConfig | None = None) -> str:
    """One line for an error of transformers that names no file."""
    what = f"a model of type {config.model_type!r}" if config is not None else "a config"
    return f"transformers cannot make {what} from it ({type(error).__name__}: {' '.join(str(error).split())})."


def check_locations(name_or_path: str, files: list[str]) -> None:
    """Refuse weight files outside the local folder that a model is loaded from.

    Raises:
        CheckpointError: naming the file.
    """
    if not os.path.isdir(name_or_path):
        return  # transformers keeps what it downloads in its cache
    root = os.path.abspath(name_or_path)
    for file in files:
        if not Path(os.path.abspath(file)).is_relative_to(root):
            raise CheckpointError(f"{file}: is outside the folder {root}.")
    folders = {os.path.dirname(os.path.abspath(file)) for file in files} - {root}
    for folder in folders:  # (a subfolder, of which no earlier hook is told)
        local_weight_files(Path(folder))


def check_built(model: PreTrainedModel, files: list[str]) -> None:
    """Refuse a model on the meta device whose conversion, or whose own tables, would cost what its files cannot account for.

    Args:
        model: before its projections are looked for.
        files: its safetensors, which hold experts one by one or fused.

    Raises:
        CheckpointError: naming the files and the numbers.
    """
    modules: Iterable[Any] = model.modules()
    experts = sum(m.num_experts * len(expert_projections(m)) for m in modules if is_fused_experts(m))
    stored = model.state_dict().keys()
    computed = {name: buffer for name, buffer in model.named_buffers() if name not in stored}
    if experts <= _FEW_EXPERTS and all(buffer.nbytes <= _COMPUTED_BYTES for buffer in computed.values()):
        return
    contents = read_contents(files)
    names, size = ", ".join(contents.files), f"{contents.nbytes / 2**20:.1f} MB"
    if experts > max(_FEW_EXPERTS, contents.tensors, contents.nbytes // _EXPERT_BYTES):
        raise CheckpointError(
            f"{names}: {contents.tensors} tensors in {size} cannot be the {experts} projections of experts that the config claims."
        )
    for name, buffer in computed.items():
        if buffer.nbytes > max(_COMPUTED_BYTES, contents.nbytes):
            raise CheckpointError(
                f"{names}: the config asks for a table {name!r} of shape {list(buffer.shape)}, {buffer.nbytes >> 20} MB, beside weights "
                f"of {size}."
            )


def is_student_checkpoint(name_or_path: str | os.PathLike) -> bool:
    """Whether a checkpoint is a student that can be trained, and not a full-precision model.

    Raises:
        ValueError: it is neither: packed (offline), or quantised by another method.
        OSError: it is not found.
    """
    quantization = getattr(AutoConfig.from_pretrained(name_or_path), "quantization_config", None)
    if quantization is None:
        return False
    if quantization.get("quant_method") != QUANT_METHOD:
        raise ValueError(
            f"{name_or_path} is quantised by {quantization.get('quant_method')!r}; start from full precision"
        )
    if quantization.get("quantization_mode") != "online":
        raise ValueError(f"{name_or_path} is packed and cannot be trained; start from the online student")
    return True
