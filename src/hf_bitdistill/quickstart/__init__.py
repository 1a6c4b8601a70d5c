"""The quickstart: the recipe on real text in minutes, with nothing but what is installed.

`run_quickstart(output_dir)` is what `bitdistill quickstart` and `make demo` run.
"""

from typing import TYPE_CHECKING

from ..modules.lazy import attach as _attach
from .settings import TEACHER_FOLDER, QuickstartError, QuickstartSettings


if TYPE_CHECKING:
    from .run import run_quickstart

# The training libraries take seconds to import; the settings do not need them.
__getattr__, __dir__ = _attach(__name__, {"run_quickstart": "run"})

__all__ = ["TEACHER_FOLDER", "QuickstartError", "QuickstartSettings", "run_quickstart"]
