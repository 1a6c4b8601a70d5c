"""Optimizers of `TrainingArguments(optim=...)` that come from other packages: which one, and whether it is there."""

from __future__ import annotations

from importlib.util import find_spec


#: Package -> what of this package's extras installs it.
_EXTRAS = {"bitsandbytes": "bitsandbytes", "torchao": "torchao"}


def optimizer_package(optim: object) -> str | None:
    """The package that an 8-bit, 4-bit or paged optimizer comes from; `None` for all others.

    Args:
        optim: a name, or `OptimizerNames`.
    """
    name = str(getattr(optim, "value", optim))
    if name in ("adamw_torch_8bit", "adamw_torch_4bit"):
        return "torchao"
    is_low_rank = name.startswith(("galore", "apollo"))
    if not is_low_rank and (name.startswith(("paged_", "lion_", "ademamix")) or "bnb" in name or name == "adamw_8bit"):
        return "bitsandbytes"
    return None


def check_optimizer(optim: object) -> None:
    """Refuse an optimizer whose package is not installed: `Trainer` would say so after models and data were loaded.

    Raises:
        ImportError: names the package, and how to install it.
    """
    package = optimizer_package(optim)
    if package is not None and find_spec(package) is None:
        raise ImportError(
            f"optim={getattr(optim, 'value', optim)} needs {package}, which is not installed: pip install 'hf-bitdistill[{_EXTRAS[package]}]'"
        )


def knows_no_shards(optim: object) -> bool:
    """Whether an optimizer cannot update parameters that are sharded tensors (FSDP2)."""
    return optimizer_package(optim) == "bitsandbytes"
