"""Packages of the real names with next to nothing in them, so that starts of Python can be tried in milliseconds."""

import os
import subprocess
import sys


LM_EVAL_REGISTRY = """
class Registry(dict):
    def register(self, name, target):
        assert self.setdefault(name, target) == target
model_registry = Registry()
def names():
    if not model_registry:  # as in lm_eval
        import lm_eval.models
    return model_registry
"""


def make_fakes(folder, plugin="import transformers.modeling_utils as m; m.registered.append(m.whole)"):
    """`transformers`, whose module for loading says whether it is whole, `lm_eval`, and `hf_bitdistill` with `plugin` for its code."""
    files = {
        "transformers/__init__.py": "",
        "transformers/modeling_utils.py": "registered = []\nimport transformers.inner, transformers.quantizers\nwhole = True\n",
        "transformers/inner.py": "",
        "transformers/quantizers/__init__.py": "",
        "lm_eval/__init__.py": "",
        "lm_eval/api/__init__.py": "",
        "lm_eval/api/registry.py": LM_EVAL_REGISTRY,
        "lm_eval/models/__init__.py": "from lm_eval.api.registry import model_registry as r\nr.register('hf', target='...')",
    }
    if plugin is not None:
        files["hf_bitdistill/__init__.py"] = plugin
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def python(*arguments, executable=sys._base_executable, path=(), **environment):
    """Run Python, by default one without the packages of this environment, with folders on PYTHONPATH."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [str(executable), *map(str, arguments)],
        env={**inherited, "PYTHONPATH": os.pathsep.join(map(str, path)), **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )
