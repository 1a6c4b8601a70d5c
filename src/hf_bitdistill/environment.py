"""The machine: where to compute, and what a measurement was made on."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
from datetime import date
from pathlib import Path

import torch

from . import processes


def default_device() -> torch.device:
    """The accelerator, where there is one; of several processes on a machine each has one of its own, as accelerate shares them."""
    if not torch.accelerator.is_available():
        return torch.device("cpu")
    device = torch.accelerator.current_accelerator()
    if processes.world_size() == 1:
        return device
    return torch.device(device.type, processes.local_rank() % torch.accelerator.device_count())


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
    return {
        "date": date.today().isoformat(),
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": importlib.metadata.version("transformers"),
    }
