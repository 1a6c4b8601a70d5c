"""Registers hf_bitdistill once a program has imported the part of transformers that loads models.

Run by Python, in any environment, before transformers is imported: it imports nothing, and knows nothing of this package but its name.
"""

import sys


class HfBitDistillHook:
    """Finds one module, and then leaves `sys.meta_path`.

    Not `transformers` itself, which imports nothing but names, and none of its parts that `modeling_utils` imports: this package needs
    that module whole. Nothing is loaded without it.
    """

    module = "transformers.modeling_utils"

    def find_spec(self, name, path=None, target=None):
        if name != self.module:
            return None
        sys.meta_path.remove(self)
        from importlib.util import find_spec

        spec = find_spec(name)  # by the others
        if spec is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader:
    """The loader of that module, for as long as it loads."""

    def __init__(self, loader):
        self._loader = loader

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        _register()


def _register():
    try:
        import hf_bitdistill  # noqa: F401
    except Exception as error:  # whatever is wrong with it is no reason for another's program to stop
        if getattr(error, "name", None) != "hf_bitdistill":  # (uninstalled, or a Python of another environment)
            line = " ".join(str(error).split())
            print(f"hf_bitdistill could not be registered ({type(error).__name__}: {line})", file=sys.stderr)


sys.meta_path.insert(0, HfBitDistillHook())
