"""`bitdistill run`: a model and a dataset to a packed ternary student, with the best recipe known here.

`bitdistill run --model MODEL --dataset DATASET --output_dir OUT` is enough. The same command goes on where it stopped; a
changed option runs again only what depends on it.

On several GPUs: `torchrun --nproc-per-node 8 -m hf_bitdistill run ...`, or `accelerate launch ... -m hf_bitdistill run ...`.

`--plan` measures a few steps here, prints the stages with their times, and stops. `--plan --nodes 2 --gpus 8 --gpu_memory 80` prints what
a training would take on machines that are not at hand, under each engine, from the model's configuration.
"""

from __future__ import annotations

import dataclasses
import json

from ..files.atomic import write_text
from ..machine import processes
from ..options.options_parser import OptionsParser
from ..options.parsing import read
from ..recipe import RecipeError, RecipeSettings
from ..scale import HardwareArguments
from .runs import says_how_to_go_on


def make_parser(prog: str) -> OptionsParser:
    return OptionsParser(
        (RecipeSettings, HardwareArguments),
        prog,
        __doc__,
        required=("model or teacher", "dataset or task", "output_dir"),
        required_unless=[field.name for field in dataclasses.fields(HardwareArguments)],
    )


def run(argv: list[str], prog: str) -> None:
    settings, hardware = read(make_parser(prog), argv)
    if hardware.is_given:
        _plan_scale(settings, hardware)
        return
    from ..recipe.pushing import check_push
    from ..recipe.run import plan_recipe, run_recipe

    if settings.plan:
        plan_recipe(settings)
        return
    processes.on_first(lambda: check_push(settings), "looking at the Hub")
    with says_how_to_go_on(prog, argv):
        run_recipe(settings)


def _plan_scale(settings: RecipeSettings, hardware: HardwareArguments) -> None:
    hardware.require(settings.plan)
    from ..files.disk_room import check_writable
    from ..scale.memory_plan import plan_scale

    if hardware.output_file is not None:
        check_writable(hardware.output_file, is_file=True)
    plan = plan_scale(settings, hardware)
    if hardware.output_file is not None:
        write_text(hardware.output_file, json.dumps(plan.to_dict(), indent=2) + "\n")
    print(plan.text())
    if plan.cheapest is None:
        raise RecipeError(plan.refusal)
