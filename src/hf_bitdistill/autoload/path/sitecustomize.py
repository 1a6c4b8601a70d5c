"""Python imports a module of this name at its start. It runs the hook of this package, and then the module that it stands in front of."""

import os
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec


def _run_hook(folder):
    file = os.path.join(os.path.dirname(folder), "hook.py")
    with open(file, encoding="utf-8") as opened:
        exec(compile(opened.read(), file, "exec"), {"__name__": "hf_bitdistill_hook"})


def _run_next(folder):
    others = [entry for entry in sys.path if os.path.abspath(entry) != folder]
    spec = PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        module = sys.modules["sitecustomize"] = module_from_spec(spec)
        spec.loader.exec_module(module)


_folder = os.path.dirname(os.path.abspath(__file__))
_run_hook(_folder)
_run_next(_folder)
