"""The recipe: a model and a dataset to a packed ternary student, in one call.

`run_recipe(RecipeSettings(model=..., dataset=..., output_dir=...))` is what `bitdistill run` does.
"""

from typing import TYPE_CHECKING

from .settings import RecipeError, RecipeSettings


if TYPE_CHECKING:
    from .run import RecipeResult, plan_recipe, run_recipe

__all__ = ["RecipeError", "RecipeResult", "RecipeSettings", "plan_recipe", "run_recipe"]


def __getattr__(name: str):
    # The training libraries take seconds to import; the settings do not need them.
    if name in ("RecipeResult", "plan_recipe", "run_recipe"):
        from . import run

        return getattr(run, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
