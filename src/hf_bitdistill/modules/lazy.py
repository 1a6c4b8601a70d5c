"""Names of a package that are imported when they are first used: what defines them takes seconds to import.

A package that does so also imports its names under `TYPE_CHECKING`, for type checkers and editors, and lists them in `__all__`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def attach(package: str, where: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package.

    Args:
        package: its `__name__`.
        where: public name -> module below the package that defines it.
    """

    def get(name: str) -> Any:
        if name not in where:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f".{where[name]}", package), name)

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *where})

    return get, names
