"""What `hf_bitdistill` and its documented packages export says the type of every argument and of what it returns."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

import hf_bitdistill


PACKAGES = (
    "hf_bitdistill",
    "hf_bitdistill.adapters",
    "hf_bitdistill.hub.cards",
    "hf_bitdistill.data",
    "hf_bitdistill.runtime",
    "hf_bitdistill.training",
    "hf_bitdistill.training.losses.divergences",
    "hf_bitdistill.evaluation",
    "hf_bitdistill.export",
    "hf_bitdistill.gguf_format",
    "hf_bitdistill.hub",
    "hf_bitdistill.importing",
    "hf_bitdistill.nn",
    "hf_bitdistill.quantization",
    "hf_bitdistill.recipe",
    "hf_bitdistill.verify",
    "hf_bitdistill.training.warm_start",
    "optimum.bitnet",
)


def functions(package):
    """Name and function of all that a package exports, public methods of its own classes included."""
    module = importlib.import_module(package)
    for name in module.__all__:
        exported = getattr(module, name)
        if inspect.isclass(exported):
            for member, value in vars(exported).items():
                if isinstance(value, property):
                    value = value.fget
                value = inspect.unwrap(getattr(value, "__func__", value))
                is_public = inspect.isfunction(value) and (not member.startswith("_") or member == "__init__")
                if is_public and value.__module__.startswith(("hf_bitdistill", "optimum.bitnet")):
                    yield f"{name}.{member}", value
        elif inspect.isfunction(inspect.unwrap(exported)):
            yield name, inspect.unwrap(exported)


def untyped(function):
    """Arguments without a type; `return` for the result."""
    signature = inspect.signature(function)
    own = list(signature.parameters.values())
    if own and own[0].name in ("self", "cls"):
        own = own[1:]
    found = [each.name for each in own if each.annotation is inspect.Parameter.empty]
    if signature.return_annotation is inspect.Signature.empty and function.__name__ != "__init__":
        found.append("return")
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_whatever_is_exported_is_typed(package):
    found = {name: missing for name, function in functions(package) if (missing := untyped(function))}
    assert not found


def test_the_check_sees_what_is_missing():
    def half(a: int, b, *rest, c: int = 0, **more: int):
        return a

    assert untyped(half) == ["b", "rest", "return"]
    assert len(list(functions("hf_bitdistill"))) > 20


@pytest.mark.parametrize("package", ["hf_bitdistill", "optimum.bitnet"])
def test_type_checkers_of_users_may_read_the_types(package):
    assert (Path(importlib.import_module(package).__file__).parent / "py.typed").is_file()


def test_an_error_of_types_is_passed_over_for_a_reason():
    root = Path(hf_bitdistill.__file__).parent.parent
    lines = [
        (file.name, line.strip())
        for folder in ("hf_bitdistill", "hf_bitdistill_cli", "optimum")
        for file in (root / folder).rglob("*.py")
        for line in file.read_text(encoding="utf-8").splitlines()
        if "type: ignore" in line
    ]
    assert lines
    assert not [each for each in lines if not re.search(r"# type: ignore\[[a-z, -]+\]  # \S", each[1])]
