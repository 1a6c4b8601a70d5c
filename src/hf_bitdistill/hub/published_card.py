"""The card of an upload: one builder for every push, on what is published."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from .cards import CardFacts, card_text, is_ours
from .cards.folder_facts import folder_facts
from .cards.retold import retell, taken_over
from .source import Source, packed_place


def published_card(
    own: str | None,
    there: str | None,
    source: Source,
    scratch: Path,
    repo_id: str,
    push_format: str,
    files: Mapping[str, Any],
    *,
    base: str | PathLike | None = None,
    replaced: bool = True,
) -> str | None:
    """What a person wrote stays: in the folder, or in the repository. A card of ours in the folder is told of the forms and the bytes that
    are published; one of ours in the repository is made again where its student is replaced.

    Args:
        own: the source's card, if it has one, with the repository's name.
        there: the repository's.
        source: that is published, packed in `scratch` if it was not.
        push_format: the forms in the repository after the upload.
        files: of the upload.
        base: what a model in memory was loaded from.
        replaced: whether the student in the repository's root is replaced; otherwise the upload only adds to it.

    Returns:
        The card to upload; `None`: that of the repository stays.

    Raises:
        CheckpointError, ValueError: a file that tells of the student is damaged.
    """
    if own is not None and not is_ours(own):
        return own
    if own is None and there is not None and not is_ours(there):
        return None

    facts = _facts(source, scratch, repo_id, push_format, files, base)
    if own is not None:
        return retell(own, facts)
    if there is None:
        return card_text(facts)
    return card_text(taken_over(there, facts, same_student=False)) if replaced else retell(there, facts)


def _facts(
    source: Source,
    scratch: Path,
    repo_id: str,
    push_format: str,
    files: Mapping[str, Any],
    base: str | PathLike | None,
) -> CardFacts:
    folder = source.online if push_format == "online" and source.online else packed_place(source, scratch)
    if not folder.is_dir():  # (the trainable form is added to a packed one that is there already)
        folder = source.model
    told = dict.fromkeys([*source.documents, source.model])
    facts = folder_facts(folder, repo_id.split("/")[-1], repo_id, [*told], base)
    gguf = sorted(name for name in files if name.endswith(".gguf") and "/" not in name)
    return dataclasses.replace(facts, push_format=push_format, gguf=gguf)
