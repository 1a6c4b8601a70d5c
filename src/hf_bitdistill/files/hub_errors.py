"""What the Hub, or its absence, says, as one line for a user."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)


LOG_IN = "log in with `hf auth login`, or give a token (HF_TOKEN)"


def status_of(error: BaseException) -> int | None:
    """The status of the Hub's answer; `None` where there was none."""
    response = getattr(error, "response", None) if isinstance(error, HfHubHTTPError) else None
    return getattr(response, "status_code", None)


def http_error(error: BaseException) -> BaseException:
    """The client's error inside of one that it wraps while it uploads in threads, or that transformers tells in several lines."""
    cause = error.__cause__
    return cause if type(error) in (RuntimeError, OSError) and isinstance(cause, HTTPError) else error


def has_token(token: str | bool | None = None) -> bool:
    """Whether a request with this argument `token` says who asks."""
    return bool(token) if isinstance(token, str) or token is False else get_token() is not None


def explain(
    error: BaseException, repo_id: str, revision: str | None = None, token: str | bool | None = None
) -> OSError | ValueError:
    """The error to raise in the place of one of the client's.

    Args:
        token: that was used, by which a missing one is told from a wrong one.
    """
    error = http_error(error)
    status, known = status_of(error), has_token(token)
    if isinstance(error, HFValidationError):
        return ValueError(f"{repo_id!r} cannot be the name of a repository: {_line(error)}")
    if isinstance(error, GatedRepoError):
        return PermissionError(
            f"{repo_id} is gated on the Hub: accept its terms there and log in with an account that did"
        )
    if isinstance(error, RevisionNotFoundError):
        return FileNotFoundError(f"{repo_id} has no revision {revision or 'main'!r} on the Hub")
    if isinstance(error, RepositoryNotFoundError):
        why = "or this account may not see it" if known else f"or it is private: {LOG_IN}"
        return FileNotFoundError(f"there is no repository {repo_id} on the Hub, {why}")
    if isinstance(error, LocalTokenNotFoundError) or (status == 401 and not known):
        return PermissionError(f"{repo_id}: the Hub asks who you are: {LOG_IN}")
    if status == 401:
        return PermissionError(f"{repo_id}: the Hub does not know this token: {LOG_IN} that is valid")
    if status == 403:
        return PermissionError(
            f"{repo_id}: this token may not do that ({_line(error)}); it needs the right to write there"
        )
    if isinstance(error, OfflineModeIsEnabled):
        return ConnectionError(f"{repo_id}: the Hub is switched off in this process (HF_HUB_OFFLINE)")
    if status is not None:
        return ConnectionError(f"{repo_id}: the Hub answered {status} ({_line(error)})")
    return ConnectionError(
        f"{repo_id}: {constants.ENDPOINT} cannot be reached ({type(error).__name__}: {_line(error)})"
    )


@contextmanager
def explained(repo_id: str, revision: str | None = None, token: str | bool | None = None) -> Iterator[None]:
    """Raise what the client raises inside of the `with` as [`explain`] says it."""
    try:
        yield
    except (HTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled) as error:
        raise explain(error, repo_id, revision, token) from error
    except (RuntimeError, OSError) as error:
        if http_error(error) is error:
            raise
        raise explain(error, repo_id, revision, token) from error


def _line(error: BaseException) -> str:
    message = getattr(error, "server_message", None) or str(error)
    return " ".join(str(message).split()) or type(error).__name__
