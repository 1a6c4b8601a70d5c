"""What `verify` looks at of a repository on the Hub, and nothing else of it: optimizers and files for other programs may be many times as large."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import hf_hub_download, snapshot_download
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..files.json_files import read_json
from ..files.model_folder import REFERENCE_FILE
from ..files.weight_files import EXPLICIT_NAME


# As the client matches them, a `*` would go into folders.
_SHARDS = f"model-{'[0-9]' * 5}-of-{'[0-9]' * 5}.safetensors"
_NAMES = (
    CONFIG_NAME,
    GENERATION_CONFIG_NAME,
    REFERENCE_FILE,
    SAFE_WEIGHTS_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    _SHARDS,
)


def fetch_student(repo_id: str, subfolder: str = "", **hub: Any) -> Path:
    """Download config, weights and kept answers of a student. Returns its folder in the cache.

    Args:
        subfolder: of the repository, where it lies.
        hub: `revision`, `cache_dir`, `token` of the download.

    Raises:
        CheckpointError: its config.json is damaged.
        (And whatever the client raises.)
    """
    place = PurePosixPath(subfolder)
    names = list(_NAMES)
    config = read_json(Path(hf_hub_download(repo_id, str(place / CONFIG_NAME), **hub)))
    explicit = config.get(EXPLICIT_NAME)
    if isinstance(explicit, str):
        # A model that was uploaded from a save that was killed: its files are in a folder of their own.
        inside = PurePosixPath(explicit).parent
        names += [explicit, *(str(inside / name) for name in _NAMES)]
    patterns = [str(place / name) for name in names]
    return Path(snapshot_download(repo_id, allow_patterns=patterns, **hub)) / subfolder
