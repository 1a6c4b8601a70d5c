"""`push_to_hub`: a student, in memory or in a folder, becomes a repository on the Hub."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi, hf_hub_download
from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ..files.hub_errors import explain, explained
from ..machine import processes
from ..modeling.surgery import student_config
from . import push_checks
from .cards import CARD, add_tags
from .published_card import published_card
from .scrubbing import known_secrets
from .source import (
    FORM_FOLDERS,
    ONLINE_FOLDER,
    Files,
    Source,
    check_files,
    documents,
    find_source,
    is_tokenizer_file,
    model_files,
    no_latent_weights,
    pack_folder,
    packed_place,
    save_forms,
    tokenizer_files,
)
from .upload import check_login, has_weights, open_repository, upload


logger = logging.get_logger(__name__)

PUSH_FORMATS = tuple(FORM_FOLDERS)


def check_push_format(push_format: str) -> None:
    """Refuse what is no form of an upload.

    Raises:
        ValueError: naming the forms.
    """
    if push_format not in PUSH_FORMATS:
        raise ValueError(f"push_format must be one of {', '.join(PUSH_FORMATS)}, not {push_format!r}")


def hub_api(token: str | bool | None = None) -> HfApi:
    """The client, as this library names itself to the Hub."""
    from .. import __version__

    return HfApi(token=token, library_name="hf-bitdistill", library_version=__version__)


def push_to_hub(
    model: PreTrainedModel | str | os.PathLike | Any,
    repo_id: str,
    *,
    push_format: str = "packed",
    tokenizer: PreTrainedTokenizerBase | None = None,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    max_shard_size: int | str = "50GB",
    tags: list[str] | str | None = None,
    check_download: bool = True,
) -> CommitInfo | None:
    """Publish a student in one commit: weights, tokenizer and chat templates, generation settings, card, results, report.

    Weights that were in their place before go in the same commit, with what was measured of them and another tokenizer's files. A card that
    this library wrote is written for what is published; one that a person wrote stays. Nothing else of a folder is published: no training
    arguments, no optimizer, no checkpoints; local paths and the Hub's tokens are taken out of texts, and a file with a token in it is
    refused.

    Args:
        model: a student; the folder of one, packed or trainable; the output folder of a training or of `bitdistill run`; or a model of
            the native backend.
        repo_id: `name` or `owner/name`. It is made if it is not there.
        push_format: `"packed"`: the packed student, 1.6 bits a weight by default; `"online"`: the trainable student, in the folder `online` of the repository;
            `"both"`.
        tokenizer: default: what is in the folder, or of a model in memory that of what it was loaded from.
        commit_message, commit_description, private, token, revision, create_pr, max_shard_size, tags: as in `push_to_hub` of a model
            of transformers; `max_shard_size` counts where weights are written for the upload.
        check_download: download the weights that were published, and verify them. (They are verified before the upload in any case.)

    Returns:
        The commit; as a string its address. `None` in all processes of a launcher but the first, which alone publishes.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds no student, or not in this form; an option means nothing.
        SurgeryError, PackedWeightError: the student cannot be packed.
        CheckpointError: a student is not what was saved, see [`~hf_bitdistill.verify.verify`]; or what is downloaded afterwards.
        OSError: the Hub refuses or cannot be reached; the repository is as it was.
    """
    check_push_format(push_format)
    if not processes.is_first():
        return None
    tags = [tags] if isinstance(tags, str) else list(tags or [])
    api, secrets = hub_api(token), known_secrets(token)
    source = find_source(Path(model)) if isinstance(model, (str, os.PathLike)) else None
    check_login(api, repo_id)  # before anything is packed
    with tempfile.TemporaryDirectory(prefix="hf-bitdistill-") as folder:
        scratch = Path(folder)
        if source is not None:
            base: str | None = None
        else:
            source, base = _saved(model, push_format, scratch, max_shard_size), getattr(model, "name_or_path", None)
            tags = [*tags, *(getattr(model, "model_tags", None) or [])]
        files = forms(source, push_format, scratch, max_shard_size)
        own_tokenizer = _own_tokenizer(model, base, tokenizer, scratch, token)
        repo_id = open_repository(api, repo_id, private, revision)
        with explained(repo_id, revision, token):
            present = [file.rfilename for file in api.model_info(repo_id, revision=revision).siblings or ()]
        _add_tokenizer(files, own_tokenizer, push_format)
        _check_tokenizer(repo_id, {*files, *present}, push_format)
        files.update(documents(source, repo_id, secrets))
        is_added = push_format == "online" and has_weights(present)
        card = published_card(
            _content(files[CARD]).decode() if CARD in files else None,
            _card_there(repo_id, revision, token, scratch) if CARD in present and CARD not in files else None,
            source,
            scratch,
            repo_id,
            "both" if is_added else push_format,
            files,
            base=base,
            replaced=not is_added,
        )
        if card is not None:
            files[CARD] = card.encode()
        if CARD in files and tags:
            files[CARD] = add_tags(_content(files[CARD]).decode(), tags).encode()
        check_files(files, secrets)
        message = commit_message or f"Upload {'packed and online' if push_format == 'both' else push_format} student"
        commit = upload(api, repo_id, files, message, commit_description, revision, create_pr)
    if check_download:
        push_checks.check_download(repo_id, commit, token, push_format)
    return commit


def forms(
    source: Source, push_format: str, scratch: Path, max_shard_size: int | str = "50GB", answers: bool = True
) -> Files:
    """The weights of a source with what belongs to them, in the forms that are asked for.

    Args:
        scratch: where a trainable student is packed.
        answers: see [`check_packed`].

    Raises:
        CheckpointError: the student is not what was packed, or saved.
        ValueError: a packed student alone was to be published as a trainable one.
    """
    files: Files = {}
    if push_format != "online":
        packed = source.packed
        if packed is None:
            packed = packed_place(source, scratch)
            assert source.online is not None  # (it is one or the other)
            pack_folder(source.online, packed, max_shard_size)
            files.update(tokenizer_files(source.online))
        push_checks.check_packed(packed, answers)
        files.update(model_files(packed))
    if push_format != "packed":
        if source.online is None:
            raise no_latent_weights(str(source.packed))
        push_checks.check_online(source.online)
        files.update({f"{ONLINE_FOLDER}/{name}": file for name, file in model_files(source.online).items()})
    return files


def _content(file: Path | bytes) -> bytes:
    return file if isinstance(file, bytes) else file.read_bytes()


def _saved(model: Any, push_format: str, scratch: Path, max_shard_size: int | str) -> Source:
    """A model in memory, in folders."""
    if isinstance(model, PreTrainedModel):
        student_config(model)  # refuses what is no student
        packed, online = save_forms(model, push_format, scratch / "model", max_shard_size)
        return Source(packed, online, (), "model")
    packed = scratch / "model"
    if push_format != "packed":
        raise no_latent_weights(type(model).__name__)
    model.save_pretrained(packed, max_shard_size=max_shard_size)
    return find_source(packed)


def _own_tokenizer(
    model: Any,
    base: str | None,
    tokenizer: PreTrainedTokenizerBase | None,
    scratch: Path,
    token: str | bool | None,
) -> Files:
    """The files of the tokenizer that was given, or that belongs to a model in memory."""
    place = scratch / "tokenizer"
    if tokenizer is None and not isinstance(model, (str, os.PathLike)) and base:
        if os.path.isdir(base):
            return tokenizer_files(Path(base))
        try:
            tokenizer = AutoTokenizer.from_pretrained(base, token=token)
        except (OSError, ValueError, HTTPError) as error:
            logger.warning(
                f"No tokenizer is uploaded: that of {base} cannot be read ({' '.join(str(error).split())})."
            )
    if tokenizer is None:
        return {}
    tokenizer.save_pretrained(place)
    return tokenizer_files(place)


def _folders(push_format: str) -> tuple[str, ...]:
    """How paths begin in the folders of a student in the repository."""
    return tuple(folder and f"{folder}/" for folder in FORM_FOLDERS[push_format])


def _add_tokenizer(files: Files, tokenizer: Files, push_format: str) -> None:
    """Into each folder of the upload, in the place of the one that is there."""
    for folder in _folders(push_format) if tokenizer else ():
        for path in [path for path in files if path.startswith(folder) and is_tokenizer_file(path[len(folder) :])]:
            del files[path]
        files.update({f"{folder}{name}": file for name, file in tokenizer.items()})


def _check_tokenizer(repo_id: str, paths: Iterable[str], push_format: str) -> None:
    """Warn of a student that nobody can ask anything."""
    paths = list(paths)
    for folder in _folders(push_format):
        if not any(path.startswith(folder) and is_tokenizer_file(path[len(folder) :]) for path in paths):
            where = f"{repo_id}/{folder}".rstrip("/")
            logger.warning(
                f"{where} is published without a tokenizer: give `tokenizer`, or push a folder that has one."
            )


def _card_there(repo_id: str, revision: str | None, token: str | bool | None, scratch: Path) -> str | None:
    """The repository's card."""
    try:
        file = hf_hub_download(repo_id, CARD, revision=revision, token=token, local_dir=scratch / "there")
    except (HTTPError, OSError) as error:
        cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else None
        raise explain(cause or error, repo_id, revision, token) from error
    return Path(file).read_text(encoding="utf-8", errors="replace")
