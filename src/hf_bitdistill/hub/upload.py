"""One commit on the Hub: all files of an upload, and without the weights that they replace."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HTTPError, LocalTokenNotFoundError
from transformers.utils import ADAPTER_CONFIG_NAME, logging

from ..files.hub_errors import explain, explained, http_error, status_of
from .source import ONLINE_FOLDER, is_measurement, is_tokenizer_file


logger = logging.get_logger(__name__)

_WEIGHTS = re.compile(r"[^/]*\.(safetensors|bin|h5|msgpack|pt|pth|ckpt)(\.index\.json)?")
# 412: another commit came first.
_AGAIN = (408, 412, 429, 500, 502, 503, 504)
_WAITS = (0.5, 1.0, 2.0, 4.0, 8.0)


def replaced_files(present: Iterable[str], files: Iterable[str], whole: Iterable[str] = ()) -> list[str]:
    """What an upload takes the place of. In each folder that it brings weights to: other weights, what was measured of them, and, if it
    brings a tokenizer, another one's files.

    Args:
        present: paths in the repository.
        files: paths of the upload.
        whole: folders of which nothing else may be left, such as an older checkpoint.
    """
    present, files = set(present), set(files)
    folders = _folders_of_weights(files)
    # Of a student that is published in the folder `online` alone, documents lie in the root.
    is_told_in_root = ONLINE_FOLDER in folders and "." not in folders and not has_weights(present)
    measured = folders | ({"."} if is_told_in_root else set())
    tokenized = {folder for folder in folders if any(map(is_tokenizer_file, _inside(folder, files).values()))}
    gone = {path for path in present if path.startswith(tuple(f"{folder}/" for folder in whole))}
    for folder in folders | measured:
        for path, name in _inside(folder, present).items():
            # (With an adapter's configuration beside them, transformers would put an adapter on the weights.)
            is_weight = folder in folders and (_WEIGHTS.fullmatch(name) or name == ADAPTER_CONFIG_NAME)
            is_tokenizer = folder in tokenized and is_tokenizer_file(name)
            if is_weight or is_tokenizer or (folder in measured and is_measurement(name)):
                gone.add(path)
    return sorted(gone - files)


def has_weights(present: Iterable[str]) -> bool:
    """Whether there is a model in a repository's root."""
    return "." in _folders_of_weights(present)


def _folders_of_weights(paths: Iterable[str]) -> set[str]:
    return {str(path.parent) for path in map(PurePosixPath, paths) if _WEIGHTS.fullmatch(path.name)}


def _inside(folder: str, paths: Iterable[str]) -> dict[str, str]:
    """Paths in a folder and below -> what they are called from there."""
    if folder == ".":
        return {path: path for path in paths}
    return {path: path.removeprefix(f"{folder}/") for path in paths if path.startswith(f"{folder}/")}


def check_login(api: HfApi, repo_id: str) -> None:
    """Refuse to go on without a token that the Hub knows.

    Raises:
        OSError: there is none; one line says what to do.
    """
    with explained(repo_id, token=api.token):
        if api.token is False:
            raise LocalTokenNotFoundError("token=False")
        api.whoami()


def open_repository(api: HfApi, repo_id: str, private: bool | None = None, revision: str | None = None) -> str:
    """Create a repository and a branch that are not there yet; returns the whole id.

    Raises:
        OSError: the Hub refuses; one line says why.
        ValueError: a private one was asked for, and it is there and public.
    """
    with explained(repo_id, revision, api.token):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if private and not api.model_info(repo_id).private:
            raise ValueError(
                f"{repo_id} is there already and public: make it private in its settings on the Hub first"
            )
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
    return repo_id


def upload(
    api: HfApi,
    repo_id: str,
    files: Mapping[str, Path | bytes],
    message: str,
    description: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    whole: Iterable[str] = (),
) -> CommitInfo:
    """Commit files. If another commit comes between, or the Hub fails for a moment, it is tried again.

    Args:
        files: path in the repository -> local file or content.
        whole: see [`replaced_files`].

    Raises:
        OSError: the Hub refuses or cannot be reached; one line says why. The repository is as it was.
    """
    for wait in (*_WAITS, None):
        try:
            # What is replaced depends on what is there: a commit that comes after this look makes this one fail.
            info = api.model_info(repo_id, revision=revision)
            present = [file.rfilename for file in info.siblings or ()]
            operations: list[Any] = [CommitOperationAdd(path, content) for path, content in sorted(files.items())]
            operations += [CommitOperationDelete(path, False) for path in replaced_files(present, files, whole)]
            return api.create_commit(
                repo_id,
                operations,
                commit_message=message,
                commit_description=description,
                revision=revision,
                create_pr=create_pr,
                parent_commit=info.sha,
            )
        except (HTTPError, RuntimeError) as error:
            found = http_error(error)
            if not isinstance(found, HTTPError):
                raise
            status = status_of(found)
            if wait is None or (status is not None and status not in _AGAIN):
                raise explain(error, repo_id, revision, api.token) from error
            logger.warning(f"{repo_id}: {explain(error, repo_id, revision, api.token)}; trying again in {wait} s")
            time.sleep(wait)
    raise AssertionError("unreachable")
