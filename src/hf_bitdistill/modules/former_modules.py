"""Modules under the names that they had, which files name that were saved then: a pickle (`training_args.bin`, a whole model of `torch.save`)
names each class by its module.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


_PACKAGE = __name__.partition(".")[0]

#: Former name -> name, both within the package. Those whose classes and functions end up in files, and those that the documentation named. What
#: was in a folder of these and has kept its name needs no line of its own.
FORMER_MODULES = {
    "calibration": "training.calibration",
    "distillation": "training",
    "heads": "modeling.lm_head",
    "layers": "nn",
    "massive_activations": "training.massive_activations",
    "packing": "modeling.pack",
    "quantizer": "modeling.quantizer",
    "quickstart.base_model": "quickstart.settings",
    "saving": "modeling.saving",
    "surgery": "modeling.surgery",
    "warm_start": "training.warm_start",
}


def _name_now(module: str) -> str | None:
    """Of a former name, `hf_bitdistill.distillation.config`; `None` for any other."""
    package, _, name = module.partition(".")
    if package != _PACKAGE:
        return None
    former = next((former for former in FORMER_MODULES if f"{name}.".startswith(f"{former}.")), None)
    return None if former is None else f"{_PACKAGE}.{FORMER_MODULES[former]}{name.removeprefix(former)}"


class _Loader(Loader):
    """Puts the module itself into the place of the one that was made for its former name."""

    def __init__(self, name: str):
        self._name = name

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[module.__name__] = import_module(self._name)


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        name = _name_now(fullname)
        return None if name is None else ModuleSpec(fullname, _Loader(name), is_package=True)


def find_former_modules() -> None:
    """Let Python find modules under their former names too. Nothing is imported before it is asked for."""
    if not any(type(finder) is _Finder for finder in sys.meta_path):
        # First: any other finder would look for `distillation.config` in the folder of what `distillation` is now, and load it a second time.
        sys.meta_path.insert(0, _Finder())
