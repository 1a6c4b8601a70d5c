"""No upload of a packed student that is not what was packed; and whether what can be downloaded is what was uploaded."""

from __future__ import annotations

import tempfile
from pathlib import Path

from huggingface_hub import CommitInfo, snapshot_download

from ..files.hub_errors import explained
from ..files.tensor_headers import CheckpointError
from ..verify import verify
from .source import ONLINE_FOLDER


def check_packed(folder: Path, answers: bool = True) -> None:
    """Refuse to publish a packed student with which something is wrong.

    Args:
        answers: whether both loaders are tried too, which takes a process and the time of loading.

    Raises:
        CheckpointError: says what; nothing was published.
    """
    found = verify(folder, answers=answers)
    if not found.passed:
        raise CheckpointError(f"{folder} is not published: {'; '.join(found.problems())}")


def check_download(repo_id: str, commit: CommitInfo, token: str | bool | None = None) -> None:
    """Download what a commit published, as anybody would whose cache is empty, and verify it.

    Raises:
        CheckpointError: it is not what was uploaded; says what.
    """
    with tempfile.TemporaryDirectory(prefix="hf-bitdistill-") as cache:
        with explained(repo_id, commit.oid, token):
            folder = snapshot_download(
                repo_id, revision=commit.oid, cache_dir=cache, token=token, ignore_patterns=f"{ONLINE_FOLDER}/*"
            )
        try:
            problems = verify(folder).problems()
        except CheckpointError as error:
            problems = [str(error)]
    if problems:
        # (Of the repository, not of the folder that is gone.)
        told = "; ".join(problems).replace(str(folder), repo_id)
        raise CheckpointError(
            f"{repo_id} was published ({commit.commit_url}), but what is downloaded from it is not what was uploaded: {told}"
        )
