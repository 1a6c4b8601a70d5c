"""What the name of a model means: a folder here or a model on the Hub; and where it is neither, what may have been meant."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, is_offline_mode
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from transformers.utils import CONFIG_NAME

from ..files.data_formats import looks_like_path
from ..files.hub_errors import LOG_IN, explain, has_token
from .preflight import check_config_file


def find_model(name_or_path: str, **hub: Any) -> str:
    """Refuse what is neither a model's folder nor a model on the Hub (or in its cache).

    Args:
        hub: `revision`, `subfolder`, `cache_dir`, `token`, `local_files_only`, `force_download` of a download.

    Returns:
        The folder's path, or the id.

    Raises:
        FileNotFoundError: there is no such folder, or it holds no model, or the name is neither here nor on the Hub; with what is
            like it here.
        CheckpointError: its config.json is damaged.
        PermissionError: the model on the Hub is gated, or the token is none that it knows.
        ConnectionError: the Hub fails, and its cache does not have the model.
    """
    path = Path(name_or_path).expanduser()
    if looks_like_path(name_or_path) or path.exists():
        if not path.is_dir():
            raise FileNotFoundError(f"there is no model folder {name_or_path}{_close_names(path)}")
        if not (path / CONFIG_NAME).is_file():
            raise FileNotFoundError(
                f"{name_or_path} is no model folder: it has no {CONFIG_NAME}{_newest_checkpoint(path)}"
            )
        check_config_file(path / CONFIG_NAME)
        return str(path)
    try:
        check_config_file(Path(hf_hub_download(name_or_path, CONFIG_NAME, **hub)))
    except GatedRepoError as error:
        raise explain(error, name_or_path) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        private = (
            "or this account may not see it" if has_token(hub.get("token")) else f"and if it is private, {LOG_IN}"
        )
        raise FileNotFoundError(_neither(name_or_path, f"which has no such public model, {private}", path)) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError) as error:
        reason = f"which cannot be reached{_switched_off(hub)}, and its cache does not have it"
        raise FileNotFoundError(_neither(name_or_path, reason, path)) from error
    except EntryNotFoundError:
        pass  # a repository without a config: whoever reads it knows what is missing
    except HTTPError as error:
        raise explain(error, name_or_path, hub.get("revision"), hub.get("token")) from error
    return name_or_path


def _neither(name: str, why: str, path: Path) -> str:
    return f"{name} is neither a folder here nor a model on the Hub, {why}{_close_names(path)}"


def _switched_off(hub: dict[str, Any]) -> str:
    if hub.get("local_files_only"):
        return " (local_files_only)"
    return " (HF_HUB_OFFLINE)" if is_offline_mode() else ""


def _close_names(path: Path) -> str:
    """Folders with models whose names are like that of a path, in the folder where it would be."""
    try:
        folders = [each for each in path.parent.iterdir() if each.is_dir() and _holds_model(each)]
    except OSError:
        return ""
    by_name = {each.name.lower(): each for each in folders}
    close = difflib.get_close_matches(path.name.lower(), by_name, n=3)
    return f"; did you mean {' or '.join(str(by_name[name]) for name in close)}?" if close else ""


def _holds_model(folder: Path) -> bool:
    try:
        return (folder / CONFIG_NAME).is_file() or any(folder.glob("checkpoint-*"))
    except OSError:
        return False


def _newest_checkpoint(folder: Path) -> str:
    from ..files.training_checkpoints import choose, list_checkpoints

    if not list_checkpoints(folder):
        return ""
    choice = choose(folder)
    if choice.checkpoint is None:
        return f", and none of its checkpoints is whole ({choice.reasons()})"
    passed = f" (newer ones are not whole: {choice.reasons()})" if choice.skipped else ""
    return (
        f". The training that wrote its checkpoints has not saved its model there; the newest checkpoint is {choice.checkpoint}"
        f"{passed}: give that, or call trainer.save_model()"
    )
