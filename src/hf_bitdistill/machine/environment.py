"""The machine: where to compute, and what a measurement was made on."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from . import processes


if TYPE_CHECKING:
    from transformers import PreTrainedModel


def default_device() -> torch.device:
    """The accelerator, where there is one; of several processes on a machine each has one of its own, as accelerate shares them."""
    if not torch.accelerator.is_available():
        return torch.device("cpu")
    device = torch.accelerator.current_accelerator()
    assert device is not None  # (one is available)
    if processes.world_size() == 1:
        return device
    return torch.device(device.type, processes.local_rank() % torch.accelerator.device_count())


def to(model: PreTrainedModel, place: torch.device | torch.dtype) -> PreTrainedModel:
    """`model.to(place)`: what wraps that method in transformers is typed as if it took the model once more."""
    return model.to(place)  # type: ignore[arg-type]  # see above


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device; of a CPU what the system says is available."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable")))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2 if hasattr(os, "sysconf") else 4 << 30


@functools.cache
def processor_name() -> str:
    """The CPU's model name, as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def describe_environment() -> dict[str, str | int]:
    """Machine, versions and date, to stand beside every measured number."""
    from .. import __version__

    return {
        "date": date.today().isoformat(),
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": importlib.metadata.version("transformers"),
        "hf-bitdistill": __version__,
    }
