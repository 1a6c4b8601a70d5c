"""Packages whose names are imported when they are first used."""

import ast
import os
import sys
from importlib import import_module
from pathlib import Path

import pytest

import warm
from hf_bitdistill.modules.lazy import attach


PACKAGES = [
    "hf_bitdistill",
    "hf_bitdistill.evaluation",
    "hf_bitdistill.recipe",
    "hf_bitdistill.quickstart",
    "optimum.bitnet",
]


def for_type_checkers(package) -> set[str]:
    """Names that a package imports under `TYPE_CHECKING`."""
    tree = ast.parse(Path(package.__file__).read_text(encoding="utf-8"))
    blocks = [
        node for node in tree.body if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
    ]
    return {alias.name for block in blocks for line in block.body for alias in line.names}


@pytest.mark.parametrize("name", PACKAGES)
def test_every_name_is_there(name):
    package = import_module(name)
    lazy = package.__getattr__.__closure__[1].cell_contents
    assert for_type_checkers(package) == set(lazy)
    assert set(package.__all__) >= set(lazy)
    assert set(dir(package)) >= set(package.__all__)
    for public in package.__all__:
        found = getattr(package, public)
        assert not callable(found) or found.__name__.lower() == public.lower()
    with pytest.raises(AttributeError, match=f"module '{name}' has no attribute 'nothing'"):
        package.nothing  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        exec(f"from {name} import nothing")


def test_a_module_is_imported_when_its_name_is_used(tmp_path):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text(
        "from hf_bitdistill.modules.lazy import attach\n__getattr__, __dir__ = attach(__name__, {'value': 'slow.inner'})\n"
    )
    (tmp_path / "package" / "slow").mkdir()
    (tmp_path / "package" / "slow" / "__init__.py").write_text("")
    (tmp_path / "package" / "slow" / "inner.py").write_text("value = 7\n")
    code = (
        "import sys, package\n"
        "assert 'value' in dir(package) and 'package.slow' not in sys.modules\n"
        "from package import value\n"
        "assert value == package.value == 7 and 'package.slow.inner' in sys.modules\n"
    )
    done = warm.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.returncode == 0, done.stderr


def test_what_is_not_there_is_named():
    get, _ = attach("somewhere", {"known": "module"})
    with pytest.raises(AttributeError, match="module 'somewhere' has no attribute 'unknown'"):
        get("unknown")
