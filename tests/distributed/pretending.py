"""Tells accelerate that this machine's CPU is something that FSDP and DeepSpeed can be used on, which it does not believe."""

from __future__ import annotations

import os
from importlib.util import find_spec

import transformers.training_args
from accelerate import PartialState
from accelerate.utils import DistributedType


def shard_on_cpu() -> None:
    """From here on, processes of a launcher meet over gloo, as if each had an accelerator, which is its CPU."""
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    os.environ["DS_ACCELERATOR"] = "cpu"

    usual = PartialState._prepare_backend

    def prepare_backend(self, cpu=False, sagemaker_dp=False, backend=None):
        if cpu:  # (asked for by `use_cpu`, for DDP)
            return usual(self, cpu, sagemaker_dp, backend)
        return "gloo", DistributedType.MULTI_GPU

    if "LOCAL_RANK" in os.environ:
        PartialState._prepare_backend = prepare_backend
        if find_spec("deepspeed") is not None:
            import deepspeed

            # It would compile an operator of its own for the memory that processes share, behind a lock that outlives who is killed.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        transformers.training_args.is_torch_bf16_gpu_available = lambda: True
