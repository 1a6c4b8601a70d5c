"""Which private names of other libraries a source names, as far as its text tells."""

from __future__ import annotations

import ast
import functools
from dataclasses import dataclass
from pathlib import Path


SOURCE = Path(__file__).resolve().parents[1] / "src"

# Of the standard library.
_STANDARD = {
    "_actions": "argparse: the only way to the options of a parser",
    "_exit": "os: public and documented",
    "_run_exitfuncs": "atexit: what os._exit leaves out",
    "_fields": "collections.namedtuple: public and documented",
    "_fields_": "ctypes: public and documented",
}
_ASKED_BY_NAME = {"getattr", "hasattr", "setattr", "delattr"}


def is_private(name: str) -> bool:
    return name.startswith("_") and name != "_" and not (name.startswith("__") and name.endswith("__"))


@dataclass(frozen=True)
class Use:
    """`own`: of `self`, `cls` or `super()`, so of what a class inherits, if nothing of ours defines it."""

    file: str
    line: int
    name: str
    own: bool


class File:
    """One file of ours: what it defines, what it names, and which files of ours it imports."""

    def __init__(self, path: Path, root: Path = SOURCE):
        self.path, self.name = path, str(path.relative_to(root))
        self.module = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        self.tree = ast.parse(path.read_text(encoding="utf-8"))
        self.defined: set[str] = set()
        self.imported: set[str] = set()
        self.uses: list[Use] = []
        for node in ast.walk(self.tree):
            self._define(node)
            self._import(node)
        for node in ast.walk(self.tree):
            self._use(node)

    def _define(self, node: ast.AST) -> None:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            self.defined.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_self(node.value):
            self.defined.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            self.defined.add(node.id)
        elif isinstance(node, ast.arg):
            self.defined.add(node.arg)
        elif isinstance(node, ast.Subscript) and _is_dictionary(node.value) and isinstance(node.slice, ast.Constant):
            self.defined.add(node.slice.value)

    def _import(self, node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            self.imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = self.module.split(".")
            if self.path.name != "__init__.py":
                package = package[:-1]
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            self.imported |= {module, *(f"{module}.{alias.name}" for alias in node.names)}

    def _use(self, node: ast.AST) -> None:
        if isinstance(node, ast.Attribute):
            self._note(node, node.attr, _is_self(node.value) or _is_super(node.value))
        elif isinstance(node, ast.ImportFrom) and not node.level:
            if node.module.partition(".")[0] not in ("hf_bitdistill", "hf_bitdistill_cli", "__future__"):
                for name in (*node.module.split("."), *(alias.name for alias in node.names)):
                    self._note(node, name, False)
        elif isinstance(node, ast.Import):
            for name in (part for alias in node.names for part in alias.name.split(".")):
                self._note(node, name, False)
        elif isinstance(node, ast.Call):
            asked = _called(node) in _ASKED_BY_NAME or (
                isinstance(node.func, ast.Attribute) and _is_dictionary(node.func.value)
            )
            for argument in node.args[:2] if asked else ():
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    self._note(argument, argument.value, _is_self(node.args[0]))
            for keyword in node.keywords:
                self._note(node, keyword.arg or "", False)
        elif isinstance(node, ast.Dict):
            for key in node.keys:
                if isinstance(key, ast.Constant) and isinstance(key.value, str) and key.value.isidentifier():
                    self._note(key, key.value, False)

    def _note(self, node: ast.AST, name: str, own: bool) -> None:
        if is_private(name) and name not in _STANDARD and name not in self.defined:
            self.uses.append(Use(self.name, node.lineno, name, own))


def _is_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def _is_super(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and _called(node) == "super"


def _is_dictionary(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == "__dict__"


def _called(node: ast.Call) -> str:
    return node.func.id if isinstance(node.func, ast.Name) else ""


@functools.cache
def foreign_uses(root: Path = SOURCE) -> list[Use]:
    """Private names that are defined neither in the file that names them nor in one of ours that it imports; for what a class inherits,
    nor in one that those import."""
    files = {file.module: file for file in (File(path, root) for path in sorted(root.rglob("*.py")))}

    def defined_by(file: File, seen: set[str], deep: bool) -> set[str]:
        found = set(file.defined)
        for module in file.imported & files.keys() - seen:
            seen.add(module)
            found |= defined_by(files[module], seen, deep) if deep else files[module].defined
        return found

    foreign = []
    for file in files.values():
        near, far = defined_by(file, set(), False), defined_by(file, {file.module}, True)
        foreign += [use for use in file.uses if use.name not in (far if use.own else near)]
    return foreign
