"""No upload of a student that is not what was saved; and whether what can be downloaded is what was uploaded."""

from __future__ import annotations

import tempfile
from pathlib import Path

from huggingface_hub import CommitInfo

from ..files.hub_errors import explained
from ..files.tensor_headers import CheckpointError
from ..verify import Verification, verify, verify_online
from ..verify.downloads import fetch_student
from .source import FORM_FOLDERS


def check_packed(folder: Path, answers: bool = True) -> None:
    """Refuse to publish a packed student with which something is wrong.

    Args:
        answers: whether both loaders are tried too, which takes two processes and the time of loading.

    Raises:
        CheckpointError: says what; nothing was published.
    """
    _refuse(folder, verify(folder, answers=answers))


def check_online(folder: Path) -> None:
    """Refuse to publish a trainable student whose weights are not those that were saved.

    Raises:
        CheckpointError: says what; nothing was published.
    """
    _refuse(folder, verify_online(folder))


def _refuse(folder: Path, found: Verification) -> None:
    if not found.passed:
        raise CheckpointError(f"{folder} is not published: {'; '.join(found.problems())}")


def check_download(
    repo_id: str, commit: CommitInfo, token: str | bool | None = None, push_format: str = "packed"
) -> None:
    """Download the weights that a commit published, as anybody would whose cache is empty, and verify them.

    Args:
        push_format: the forms that were published, one after the other: never more than one of them is on the disk.

    Raises:
        CheckpointError: they are not what was uploaded; says what.
    """
    problems = [
        problem for place in FORM_FOLDERS[push_format] for problem in _problems(repo_id, place, commit.oid, token)
    ]
    if problems:
        raise CheckpointError(
            f"{repo_id} was published ({commit.commit_url}), but what is downloaded from it is not what was uploaded: "
            f"{'; '.join(problems)}"
        )


def _problems(repo_id: str, place: str, revision: str, token: str | bool | None) -> list[str]:
    with tempfile.TemporaryDirectory(prefix="hf-bitdistill-") as cache:
        folder = Path(cache)
        try:
            with explained(repo_id, revision, token):
                folder = fetch_student(repo_id, place, revision=revision, cache_dir=cache, token=token)
            problems = (verify_online(folder) if place else verify(folder)).problems()
        except CheckpointError as error:
            problems = [str(error)]
    # (Of the repository, not of the folder that is gone.)
    name = f"{repo_id}/{place}" if place else repo_id
    return [problem.replace(str(folder), name) for problem in problems]
