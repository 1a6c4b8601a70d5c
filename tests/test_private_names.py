"""No source names anything private of another library but `_compat.py`, and what classes of ours inherit is there as they expect it."""

import ast
import functools
import importlib
import importlib.util
import inspect
import pkgutil

import pytest

import hf_bitdistill
import optimum.bitnet
from hf_bitdistill._compat import IN_SUBCLASSES
from private_names import SOURCE, File, foreign_uses


# ---- no other private name ----


def test_private_names_stand_in_one_file():
    inherited = {entry.name for entry in IN_SUBCLASSES} | {
        p for entry in IN_SUBCLASSES for p in entry.parameters or ()
    }
    others = [use for use in foreign_uses() if use.file != "hf_bitdistill/_compat.py"]
    wrong = [f"{use.file}:{use.line}: {use.name}" for use in others if use.name not in inherited]
    assert not wrong, "give them a function in hf_bitdistill/_compat.py:\n" + "\n".join(wrong)


@pytest.mark.parametrize(
    "text, found",
    [
        ("import torch\ntorch._C.x()", ["_C"]),
        ("from torch._C import x", ["_C"]),
        ("import torch._dynamo", ["_dynamo"]),
        ("from huggingface_hub import _CACHED", ["_CACHED"]),
        ("getattr(model, '_tied', None)", ["_tied"]),
        ("model.__dict__.pop('_tied')", ["_tied"]),
        ("model._tied = None", ["_tied"]),
        ("cached_file(name, _raise=False)", ["_raise"]),
        ("cached_file(name, **{'_raise': False})", ["_raise"]),
        ("class A(B):\n    def f(self):\n        self._signature\n        super()._save()", ["_signature", "_save"]),
        (
            "class A:\n    def __init__(self):\n        self._x = 1\n    def _y(self):\n        return self._x + other._y",
            [],
        ),
        ("a.__class__, a._fields_, __version__, [_ for _ in x]", []),
    ],
)
def test_private_names_are_found(tmp_path, text, found):
    (tmp_path / "a.py").write_text(text)
    assert [use.name for use in File(tmp_path / "a.py", tmp_path).uses] == found


def test_a_name_of_another_file_of_ours_counts_where_that_is_imported(tmp_path):
    package = tmp_path / "hf_bitdistill"
    package.mkdir()
    (package / "a.py").write_text("class A:\n    def _own(self):\n        pass")
    (package / "b.py").write_text("from .a import A\nA()._own()")
    (package / "c.py").write_text("x._own()")
    assert [(use.file, use.name) for use in foreign_uses(tmp_path)] == [("hf_bitdistill/c.py", "_own")]


# ---- in subclasses ----


def owner_of(entry):
    if entry.needs is not None and importlib.util.find_spec(entry.needs) is None:
        pytest.skip(f"needs {entry.needs}")
    module, _, name = entry.owner.rpartition(".")
    return getattr(importlib.import_module(module), name)


def our_classes():
    """Of all modules that can be imported here."""
    for package in (hf_bitdistill, optimum.bitnet):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if found.name.endswith(("__main__", "libbitdistill")):
                continue
            try:
                module = importlib.import_module(found.name)
            except ImportError as error:
                assert not (error.name or "").startswith("hf_bitdistill"), error
                continue
            yield from (c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == found.name)


def is_ours(cls):
    return cls.__module__.startswith(("hf_bitdistill", "optimum.bitnet"))


LIBRARIES = (
    "transformers",
    "accelerate",
    "datasets",
    "peft",
    "optimum",
    "huggingface_hub",
    "torch",
    "evaluate",
    "lm_eval",
)
# Made by Python and torch for every such class.
_MADE = {"_abc_impl", "_backward_cls"}


@functools.cache
def overrides():
    """`(class of ours, class of a library, name)` of everything private that ours has in place of the library's."""
    found = []
    for cls in our_classes():
        for name in vars(cls):
            if not name.startswith("_") or name.startswith("__") or name in _MADE:
                continue
            base = next((b for b in cls.__mro__[1:] if not is_ours(b) and name in vars(b)), None)
            if base is not None and base.__module__.partition(".")[0] in LIBRARIES:
                found.append((cls, base, name))
    return found


@pytest.mark.parametrize("entry", IN_SUBCLASSES, ids=lambda entry: f"{entry.owner}.{entry.name}")
def test_what_classes_of_ours_inherit_is_there(entry):
    owner = owner_of(entry)
    if entry.parameters is None:  # an attribute: of the class, or one that its code sets or reads
        assert hasattr(owner, entry.name) or entry.name in inspect.getsource(inspect.getmodule(owner))
        return
    parameters = [
        name for name in inspect.signature(getattr(owner, entry.name)).parameters if name not in ("self", "cls")
    ]
    assert tuple(parameters[: len(entry.parameters)]) == entry.parameters


def test_everything_that_is_overridden_is_listed_and_takes_what_it_is_given():
    listed = {(entry.owner.rpartition(".")[2], entry.name) for entry in IN_SUBCLASSES}
    for cls, base, name in overrides():
        owners = {parent.__name__ for parent in cls.__mro__ if not is_ours(parent)}
        assert any((owner, name) in listed for owner in owners), (
            f"{cls.__name__}.{name} overrides that of {base.__name__}"
        )
        ours, theirs = getattr(cls, name), getattr(base, name)
        if not callable(theirs):
            continue
        accepted = inspect.signature(ours).parameters.values()
        kinds = {parameter.kind for parameter in accepted}
        for parameter in inspect.signature(theirs).parameters.values():
            if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL) or parameter.name == "self":
                continue
            by_name = parameter.name in {p.name for p in accepted} or inspect.Parameter.VAR_KEYWORD in kinds
            by_place = parameter.kind is not parameter.KEYWORD_ONLY and inspect.Parameter.VAR_POSITIONAL in kinds
            assert by_name or by_place, f"{cls.__name__}.{name} is given {parameter.name}"


def test_what_is_listed_is_named_by_ours():
    named = {use.name for use in foreign_uses() if use.own}
    named |= {name for _, _, name in overrides()}
    sources = "\n".join(path.read_text() for path in SOURCE.rglob("*.py") if path.name != "_compat.py")
    tree = ast.parse(sources.replace("from __future__ import annotations\n", ""))
    named |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    named |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    assert not [entry.name for entry in IN_SUBCLASSES if entry.name not in named]
