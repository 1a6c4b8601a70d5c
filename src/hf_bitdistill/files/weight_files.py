"""Which files of a folder are a model's weights: transformers' own rule, in the one place that both loaders use."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from transformers import PreTrainedConfig
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, logging
from transformers.utils.hub import get_checkpoint_shard_files

from .._compat import cached_file_or_none, is_known_to_be_missing
from .atomic import is_aside, name_aside
from .json_files import read_index, shorten
from .tensor_headers import CheckpointError


logger = logging.get_logger(__name__)

# Key of config.json by which transformers is told another name of the weights.
EXPLICIT_NAME = "transformers_weights"

_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


def new_staging(folder: Path) -> Path:
    """The name of a new folder inside `folder`, where a model is written before it takes the place of another."""
    return name_aside(folder / "model")


def is_staging(folder: Path) -> bool:
    """Whether a name is one of [`new_staging`]."""
    return is_aside(folder) and folder.name.startswith("_model.")


def folder_of(file: str | Path) -> Path:
    """The folder of the model that a weight file is a part of."""
    folder = Path(file).parent
    return folder.parent if is_staging(folder) else folder


def is_weight_file(name: str) -> bool:
    """Whether a file of that name is (a part of, or the index of) the weights of the model in its folder."""
    return name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME) or _SHARD.fullmatch(name) is not None


def _names(explicit: str | None) -> list[str]:
    """What the weights may be called, best first: as the config says, one file, the index of shards."""
    return [explicit] if explicit else [SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME]


def local_weight_files(folder: Path, explicit: Any = None) -> list[Path]:
    """The safetensors of a local folder, by the rule of [`find_weight_files`]; none where there are no safetensors.

    Args:
        explicit: what the config names.

    Raises:
        CheckpointError: the config names no file, or the index is damaged.
    """
    if not (explicit is None or isinstance(explicit, str)):
        raise CheckpointError(f"{folder / CONFIG_NAME}: {EXPLICIT_NAME}={shorten(explicit)} must name a file.")
    for name in _names(explicit):
        file = folder / name
        if name.endswith(".index.json") and (explicit or file.is_file()):
            return read_index(file)
        if name.endswith(".safetensors") and file.is_file():
            return [file]
    return []


def find_weight_files(model_id: str | Path, config: PreTrainedConfig | None = None, **hub: Any) -> list[str]:
    """The weight files of a model, downloaded if need be.

    As transformers does, a file that the config names comes first, then one file, then the shards of an index.

    Args:
        model_id: folder or Hub id.
        config: of the model; default: what its `config.json` says, if it is a folder.
        hub: `subfolder`, `revision`, ... of `from_pretrained`.

    Raises:
        OSError: there is none.
        CheckpointError: the index is damaged, or names a file outside its folder.
    """
    model_id = str(model_id)
    explicit = getattr(config, EXPLICIT_NAME, None)
    if config is None and (Path(model_id) / CONFIG_NAME).is_file():
        explicit = PreTrainedConfig.get_config_dict(model_id)[0].get(EXPLICIT_NAME)
    for name in _names(explicit):
        file = cached_file_or_none(model_id, name, **hub)
        if file is not None and name.endswith(".index.json"):
            read_index(Path(file))
            return list(get_checkpoint_shard_files(model_id, file, **hub)[0])
        if file is not None:
            return [file]
    if not os.path.isdir(model_id) and not _known_to_be_missing(model_id, _names(explicit)[0], hub):
        raise OSError(f"{model_id}: its weights are not in the Hub's cache, and the Hub cannot be reached.")
    raise OSError(f"{model_id} has no {explicit or SAFE_WEIGHTS_NAME}: a ternary checkpoint must be safetensors.")


def _known_to_be_missing(model_id: str, name: str, hub: dict[str, Any]) -> bool:
    """Whether the Hub said, now or earlier, that there is no such file."""
    path = f"{hub['subfolder']}/{name}" if hub.get("subfolder") else name
    where = {key: hub[key] for key in ("cache_dir", "revision") if hub.get(key)}
    return is_known_to_be_missing(try_to_load_from_cache(model_id, path, **where))


def size_of_weights(model_id: str | Path, **hub: Any) -> int:
    """Bytes of the weight files of a model; 0 if there are none."""
    try:
        return sum(Path(file).stat().st_size for file in find_weight_files(model_id, **hub))
    except OSError:
        return 0


def stale_files(used: Iterable[str | Path]) -> list[Path]:
    """Weight files beside the `used` ones that are not part of the same model."""
    files = [Path(file) for file in used]
    if not files or is_staging(files[0].parent):
        return []
    names = {file.name for file in files}
    if any(_SHARD.fullmatch(name) for name in names):
        names.add(SAFE_WEIGHTS_INDEX_NAME)
    return sorted(file for file in files[0].parent.iterdir() if is_weight_file(file.name) and file.name not in names)


def warn_of_stale_files(used: Iterable[str | Path]) -> None:
    """Say what lies beside the weights that are loaded without being a part of them."""
    files = [Path(file) for file in used]
    if files and is_staging(files[0].parent):
        logger.warning(
            f"{files[0].parent.parent}: the last save was interrupted after the new model was complete, in {files[0].parent.name}. "
            "That is what is loaded; its tokenizer or other files may be older. Save there again to put everything in its place."
        )
    stale = stale_files(files)
    if stale:
        names = ", ".join(file.name for file in stale)
        loaded = files[0].name if len(files) == 1 else f"{files[0].name} and {len(files) - 1} more"
        logger.warning(
            f"{stale[0].parent}: {names} do not belong to the model that is loaded, which is {loaded}. They are left from another "
            "save or upload: remove them, or, if they are what you want, remove the others."
        )
