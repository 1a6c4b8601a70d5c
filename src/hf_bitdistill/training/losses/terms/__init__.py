"""The terms of the loss: every module of this package that defines a [`LossTerm`]."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from .base import Count, Forwards, LossTerm, Progress, TermSums


def _find() -> tuple[type[LossTerm], ...]:
    modules = [import_module(f".{entry.name}", __name__) for entry in iter_modules(__path__)]
    kinds = {
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, LossTerm) and value is not LossTerm
    }
    return tuple(sorted(kinds, key=lambda kind: kind.order))


TERMS = _find()
"""All of them, in the order in which they are added."""


__all__ = ["TERMS", "Count", "Forwards", "LossTerm", "Progress", "TermSums"]
