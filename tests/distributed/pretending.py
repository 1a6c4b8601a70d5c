"""Tells accelerate that this machine's CPU is something that FSDP and DeepSpeed can be used on, which it does not believe."""

from __future__ import annotations

import os

from accelerate import PartialState
from accelerate.utils import DistributedType


def shard_on_cpu() -> None:
    """From here on, processes of a launcher meet over gloo, as if each had an accelerator, which is its CPU."""
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    os.environ["DS_ACCELERATOR"] = "cpu"

    def prepare_backend(self, cpu=False, sagemaker_dp=False, backend=None):
        return "gloo", DistributedType.MULTI_GPU

    if "LOCAL_RANK" in os.environ:
        PartialState._prepare_backend = prepare_backend
