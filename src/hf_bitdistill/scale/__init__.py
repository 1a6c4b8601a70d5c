"""A plan before a bill: what a training takes on GPUs that are not at hand, under each engine, from a model's configuration alone."""

from .hardware import HardwareArguments


__all__ = ["HardwareArguments"]
