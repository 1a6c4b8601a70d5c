"""The recipe: a model and a dataset to a packed ternary student, in one call.

`run_recipe(RecipeSettings(model=..., dataset=..., output_dir=...))` is what `bitdistill run` does.
"""

from typing import TYPE_CHECKING

from ..modules.lazy import attach as _attach
from .settings import RecipeError, RecipeSettings


if TYPE_CHECKING:
    from .run import RecipeResult, plan_recipe, run_recipe

# The training libraries take seconds to import; the settings do not need them.
__getattr__, __dir__ = _attach(__name__, dict.fromkeys(("RecipeResult", "plan_recipe", "run_recipe"), "run"))

__all__ = ["RecipeError", "RecipeResult", "RecipeSettings", "plan_recipe", "run_recipe"]
