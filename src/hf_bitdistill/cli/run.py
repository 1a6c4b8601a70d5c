"""`bitdistill run`: a model and a dataset to a packed ternary student, with the best recipe known here.

`bitdistill run --model MODEL --dataset DATASET --output_dir OUT` is enough. The same command goes on where it stopped; a
changed option runs again only what depends on it.

On several GPUs: `torchrun --nproc-per-node 8 -m hf_bitdistill run ...`, or `accelerate launch ... -m hf_bitdistill run ...`.
"""

from __future__ import annotations

from .. import processes
from ..recipe import RecipeSettings
from .arguments import parse
from .runs import says_how_to_go_on


def run(argv: list[str], prog: str) -> None:
    (settings,) = parse([RecipeSettings], argv, prog, __doc__)
    from ..recipe.pushing import check_push
    from ..recipe.run import plan_recipe, run_recipe

    if settings.plan:
        plan_recipe(settings)
        return
    processes.on_first(lambda: check_push(settings), "looking at the Hub")
    with says_how_to_go_on(prog, argv):
        run_recipe(settings)
