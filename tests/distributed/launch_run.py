"""Run by `tests/examples/test_launch.py` in the place of `python -m hf_bitdistill`, where a configuration of GPUs is tried on a CPU."""

import functools
import os
import sys

import torch
from pretending import shard_on_cpu

from tiny_recipe import without_figures


shard_on_cpu()

from hf_bitdistill.cli.main import main  # noqa: E402
from hf_bitdistill.recipe import stages  # noqa: E402


def checked(train):
    """The same, of a trainer that has the engine that the launcher was told of."""

    def checked_train(trainer, *args):
        assert (trainer.is_fsdp_enabled, trainer.is_deepspeed_enabled) == tuple(
            os.environ.get(f"ACCELERATE_USE_{name}") == "true" for name in ("FSDP", "DEEPSPEED")
        )
        return train(trainer, *args)

    return checked_train


if __name__ == "__main__":
    torch.set_num_threads(1)
    without_figures()
    # (With it `Trainer` asks accelerate for a CPU, which then knows neither FSDP nor DeepSpeed.)
    stages.training_arguments = functools.partial(stages.training_arguments, use_cpu=False)
    stages.train = checked(stages.train)
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
