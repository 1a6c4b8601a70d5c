"""The quickstart: the recipe on real text in minutes, with nothing but what is installed.

`run_quickstart(output_dir)` is what `bitdistill quickstart` and `make demo` run.
"""

from typing import TYPE_CHECKING

from .settings import QuickstartError, QuickstartSettings


if TYPE_CHECKING:
    from .run import run_quickstart

__all__ = ["QuickstartError", "QuickstartSettings", "run_quickstart"]


def __getattr__(name: str):
    # The training libraries take seconds to import; the settings do not need them.
    if name == "run_quickstart":
        from .run import run_quickstart

        return run_quickstart
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
