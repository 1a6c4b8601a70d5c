"""Projections whose weight is read by the code around them, past the layer's own forward.

A ternary layer put there would be ignored (the latent weight is multiplied as it is), or crash (a packed one). Found in the source of
the classes that a model is made of: attribute chains `self.NAME.weight` in their methods, and in the branches that this model can take.
"""

from __future__ import annotations

import ast
import inspect
import linecache
import operator
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn


_UNKNOWN = object()

# Reading these of a weight computes nothing with it.
_HARMLESS = {"device", "dtype", "shape", "ndim", "requires_grad", "size", "dim", "numel", "is_cuda", "data_ptr"}
_HARMLESS_CALLS = {"isinstance", "hasattr", "getattr", "id"}
_NOT_COMPUTING = re.compile(
    r"__init__|reset_parameters|_*init_(.*_)?weights.*|_*tie_weights|[gs]et_(in|out)put_embeddings"
)

_COMPARISONS = {
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
}


@dataclass(frozen=True)
class _Read:
    """`path` is the chain after `self`, of module names and `*` (an element of a list)."""

    path: str
    method: str
    conditions: tuple[tuple[ast.expr, bool], ...]


def _library_class(cls: type) -> bool:
    return cls.__module__.partition(".")[0] in ("torch", "builtins") or cls.__module__ in (
        "transformers.modeling_utils",
        "transformers.pytorch_utils",
        "transformers.modeling_layers",
    )


def _chain(node: ast.expr, aliases: dict[str, str]) -> str | None:
    """`self.a[i].b` as "a.*.b", `self` as "", anything else as `None`."""
    if isinstance(node, ast.Name):
        return "" if node.id == "self" else aliases.get(node.id)
    if isinstance(node, ast.Attribute):
        before = _chain(node.value, aliases)
        return None if before is None else f"{before}.{node.attr}".lstrip(".")
    if isinstance(node, ast.Subscript):
        before = _chain(node.value, aliases)
        return f"{before}.*" if before else None
    return None


class _Reader(ast.NodeVisitor):
    """Collects the reads of one method."""

    def __init__(self, method: str):
        self.method = method
        self.aliases: dict[str, str] = {}
        self.conditions: list[tuple[ast.expr, bool]] = []
        self.reads: list[_Read] = []

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        for target in node.targets:
            if isinstance(target, ast.Name):
                self._alias(target.id, _chain(node.value, self.aliases))
            else:
                self.visit(target)

    def visit_For(self, node: ast.For) -> None:
        source, target = node.iter, node.target
        if isinstance(source, ast.Call) and isinstance(source.func, ast.Name) and source.func.id == "enumerate":
            source = source.args[0]
            target = target.elts[1] if isinstance(target, ast.Tuple) and len(target.elts) == 2 else target
        if isinstance(source, ast.Subscript):  # a slice of the list
            source = source.value
        chain = _chain(source, self.aliases)
        if isinstance(target, ast.Name):
            self._alias(target.id, f"{chain}.*" if chain else None)
        self.generic_visit(node)

    def _alias(self, name: str, chain: str | None) -> None:
        if chain:
            self.aliases[name] = chain
        else:
            self.aliases.pop(name, None)

    def visit_If(self, node: ast.If | ast.IfExp) -> None:
        self.visit(node.test)
        for body, outcome in ((node.body, True), (node.orelse, False)):
            self.conditions.append((node.test, outcome))
            for child in body if isinstance(body, list) else [body]:
                self.visit(child)
            self.conditions.pop()

    visit_IfExp = visit_If

    def visit_Call(self, node: ast.Call) -> None:
        if not (isinstance(node.func, ast.Name) and node.func.id in _HARMLESS_CALLS):
            self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if node.attr in _HARMLESS and isinstance(node.value, ast.Attribute) and node.value.attr == "weight":
            return
        chain = _chain(node, self.aliases)
        if node.attr == "weight" and chain and "." in chain:
            self.reads.append(_Read(chain.rpartition(".")[0], self.method, tuple(self.conditions)))
        self.generic_visit(node)


class _Classes(ast.NodeVisitor):
    """The classes of a file by their qualified names; of several of one name the first, as `inspect` has it."""

    def __init__(self, source: str):
        self.found: dict[str, ast.ClassDef] = {}
        self._within: list[str] = []
        self.visit(ast.parse(source))

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._within += [node.name, "<locals>"]
        self.generic_visit(node)
        del self._within[-2:]

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._within.append(node.name)
        self.found.setdefault(".".join(self._within), node)
        self.generic_visit(node)
        self._within.pop()


class _Sources:
    """What the methods of classes read. A file is parsed once for all of its classes: `inspect.getsource` parses it for each."""

    def __init__(self) -> None:
        self._files: dict[str, dict[str, ast.ClassDef]] = {}

    def _definition(self, cls: type) -> ast.ClassDef | None:
        """`None` where there is no source."""
        try:
            file = inspect.getsourcefile(cls)
            if file is None:
                return None
            if file not in self._files:
                linecache.checkcache(file)
                lines = linecache.getlines(file, vars(sys.modules[cls.__module__]))
                self._files[file] = _Classes("".join(lines)).found
        except (OSError, TypeError, SyntaxError, ValueError):
            return None
        return self._files[file].get(cls.__qualname__)

    def _methods(self, cls: type) -> dict[str, tuple[_Read, ...]]:
        """Reads of each method that `cls` itself defines."""
        if cls not in _KNOWN:
            definition = None if _library_class(cls) else self._definition(cls)
            methods: dict[str, tuple[_Read, ...]] = {}
            for function in definition.body if definition is not None else ():
                if isinstance(function, ast.FunctionDef) and function.name not in methods:
                    reader = _Reader(f"{cls.__name__}.{function.name}")
                    if not _NOT_COMPUTING.fullmatch(function.name):
                        reader.visit(function)
                    methods[function.name] = tuple(reader.reads)
            _KNOWN[cls] = methods
        return _KNOWN[cls]

    def reads_of(self, cls: type) -> Iterator[_Read]:
        """What the methods of `cls`, inherited ones included, read of weights of modules below. Nothing where there is no source."""
        seen: set[str] = set()
        for base in cls.__mro__:
            methods = self._methods(base)
            for name, reads in methods.items():
                if name not in seen:
                    yield from reads
            seen |= methods.keys()


# Of every class that was looked at. (The trees of whole files are not kept.)
_KNOWN: dict[type, dict[str, tuple[_Read, ...]]] = {}


def _value(node: ast.expr, module: nn.Module) -> Any:
    """What an expression of constants and of plain options of `module` is, or `_UNKNOWN`."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Attribute):
        chain = _chain(node, {})
        if not chain or chain == "training":
            return _UNKNOWN
        value: Any = module
        for name in chain.split("."):
            value = getattr(value, name, _UNKNOWN)
        return value if value is None or isinstance(value, (bool, int, float, str)) else _UNKNOWN
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        value = _value(node.operand, module)
        return value if value is _UNKNOWN else not value
    if isinstance(node, ast.BoolOp):
        values = [_value(part, module) for part in node.values]
        decides = isinstance(node.op, ast.Or)
        if any(value is not _UNKNOWN and bool(value) == decides for value in values):
            return decides
        return _UNKNOWN if _UNKNOWN in values else not decides
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _COMPARISONS:
        left, right = _value(node.left, module), _value(node.comparators[0], module)
        if left is not _UNKNOWN and right is not _UNKNOWN:
            try:
                return _COMPARISONS[type(node.ops[0])](left, right)
            except TypeError:
                return _UNKNOWN
    return _UNKNOWN


def _is_reachable(read: _Read, module: nn.Module) -> bool:
    values = ((_value(test, module), outcome) for test, outcome in read.conditions)
    return all(value is _UNKNOWN or bool(value) == outcome for value, outcome in values)


def _reads_in(model: nn.Module) -> Iterator[tuple[re.Pattern, str]]:
    sources = _Sources()
    for name, module in model.named_modules():
        for read in sources.reads_of(type(module)):
            if _is_reachable(read, module):
                path = re.escape(f"{name}.{read.path}".lstrip(".")).replace(r"\*", r"[^.]+")
                yield re.compile(path + "$"), read.method


def find_direct_reads(model: nn.Module, names: list[str]) -> dict[str, str]:
    """Those of the modules `names` whose weight other code of `model` reads, and the method that does (`Class.method`).

    A method whose source is not to be had is not looked into.
    """
    exact: dict[str, str] = {}
    patterns: list[tuple[re.Pattern, str]] = []
    for pattern, method in _reads_in(model):
        literal = pattern.pattern[:-1].replace("\\", "")
        if "[^.]+" in pattern.pattern:
            patterns.append((pattern, method))
        else:
            exact.setdefault(literal, method)
    found = {}
    for name in names:
        reader = exact.get(name) or next((method for pattern, method in patterns if pattern.match(name)), None)
        if reader is not None:
            found[name] = reader
    return found
