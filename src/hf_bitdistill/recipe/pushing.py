"""A run's student on the Hub (`push_to`)."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

from ..hub import push_to_hub
from ..hub.push import hub_api
from ..hub.upload import check_login
from .settings import RecipeError, RecipeSettings


def check_push(settings: RecipeSettings) -> None:
    """Refuse a run whose student could not be published, before it begins.

    Raises:
        OSError: the Hub is told of nobody, or cannot be reached; one line says what to do.
    """
    if settings.push_to is not None:
        check_login(hub_api(), settings.push_to)


def push_run(output: Path, settings: RecipeSettings, say: Callable[[str], None]) -> None:
    """Publish the student of a finished run, with its card, results and report.

    Raises:
        RecipeError: the upload failed. The run is done, and the message says how to try again.
    """
    if settings.push_to is None:
        return
    try:
        commit = push_to_hub(
            output, settings.push_to, push_format=settings.push_format, private=settings.push_private or None
        )
    except (OSError, ValueError) as error:
        options = f" --push_format {settings.push_format}" if settings.push_format != "packed" else ""
        options += " --private" if settings.push_private else ""
        raise RecipeError(
            f"the run is done, its results are in {output}, but it could not be published: {error}. To try again: "
            f"bitdistill push {shlex.quote(str(output))} {settings.push_to}{options}"
        ) from error
    say(f"on the Hub: {commit}")
