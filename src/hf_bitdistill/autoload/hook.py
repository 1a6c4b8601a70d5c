"""Registers hf_bitdistill once a program has imported the part of transformers that loads models, and its model in lm_eval.

Run by Python, in any environment, before transformers is imported: it imports nothing, and knows nothing of this package but its name.
"""

import sys


class HfBitDistillHook:
    """Finds a few modules, each once, and does something when they are whole."""

    def __init__(self, waiting):
        self.waiting = waiting

    def find_spec(self, name, path=None, target=None):
        then = self.waiting.pop(name, None)
        if then is None:
            return None
        from importlib.util import find_spec

        spec = find_spec(name)  # by the others
        if spec is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = _Loader(spec.loader, then)  # type: ignore[assignment]  # no Loader: it imports nothing
        return spec


class _Loader:
    """The loader of that module, for as long as it loads."""

    def __init__(self, loader, then):
        self._loader = loader
        self._then = then

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._then()


def _register():
    """Ternary models in transformers."""
    try:
        import hf_bitdistill  # noqa: F401
    except Exception as error:  # whatever is wrong with it is no reason for another's program to stop
        if getattr(error, "name", None) != "hf_bitdistill":  # (uninstalled, or a Python of another environment)
            line = " ".join(str(error).split())
            print(f"hf_bitdistill could not be registered ({type(error).__name__}: {line})", file=sys.stderr)


def _register_early():
    """For programs that read a quantization config before they load a model. Where `modeling_utils` is what imports the quantizers, it is not
    whole yet."""
    if "transformers.modeling_utils" not in sys.modules:
        _register()


def _name_in_lm_eval():
    """`lm_eval --model bitnet`. Only a name: what is behind it is imported when it is asked for."""
    try:
        from lm_eval.api.registry import model_registry

        model_registry.register("bitnet", target="optimum.bitnet.harness:BitNetLM")
    except Exception as error:  # (an older lm_eval has no list of names)
        line = " ".join(str(error).split())
        print(f"hf_bitdistill could not be registered in lm_eval ({type(error).__name__}: {line})", file=sys.stderr)


sys.meta_path.insert(
    0,
    HfBitDistillHook(
        {
            # Not `transformers` itself, which imports nothing but names, and none of the parts that `modeling_utils` imports: this package needs
            # that module whole. No model is loaded without it.
            "transformers.modeling_utils": _register,
            "transformers.quantizers": _register_early,
            # What fills lm_eval's list of models, and not what holds it: lm_eval fills only an empty list.
            "lm_eval.models": _name_in_lm_eval,
        }
    ),
)
