"""Real text that is there without the Hub: docstrings of Python's standard library and of installed packages.

Source files are parsed, never imported. Which paragraphs are held out follows from a hash of their own words alone, so
it does not depend on the machine, the Python version or the set of installed packages: a paragraph that is held out
here was held out when the shipped base model was trained.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import multiprocessing
import os
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


Split = Literal["train", "validation", "test"]

STANDARD_LIBRARY = "python"
QUICKSTART_PACKAGES = (STANDARD_LIBRARY, "numpy", "pandas", "torch", "sympy", "matplotlib")
"""What the quickstart reads: the standard library, and packages that come with this one."""

# Text that is nobody's documentation of the package itself: its tests, and copies of other packages.
_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "__pycache__", "_vendor", "vendored", "idlelib"}

# Shares of the paragraphs, in percent.
_TEST_SHARE, _VALIDATION_SHARE = 12, 4

# Left out of the hash, so that the same sentence about two packages ("the numpy array", "the torch array") lands in the
# same split.
_PACKAGE_NAMES = re.compile(
    r"(?i)\b(?:numpy|scipy|np|pytorch|torch\w*|pandas|pd|sympy|matplotlib|mpl|plt|pyplot|c?python\d*)\b"
)
_KEY_WORDS = 8
_MIN_LITERAL = 200


class CorpusError(RuntimeError):
    """There is not enough text on this machine."""


@dataclass(frozen=True)
class Document:
    """One docstring: the package it comes from, its paragraphs, and what it documents (`def area(width, height)`,
    `class Shape`; empty for a module and the like)."""

    source: str
    paragraphs: tuple[str, ...]
    signature: str = ""


def package_folder(package: str) -> Path | None:
    """Where the source files of an installed package (`"python"`: of the standard library) are; `None` if nowhere."""
    if package == STANDARD_LIBRARY:
        folder = Path(sysconfig.get_paths()["stdlib"])
        return folder if folder.is_dir() else None
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    locations = list(spec.submodule_search_locations or ()) if spec else []
    return Path(locations[0]) if locations else None


def source_files(folder: Path, max_bytes: int | None = None) -> list[Path]:
    """Python files below `folder`, in an order that depends on their names only, up to `max_bytes` of source.

    The order is that of a hash, so that a limit takes an even sample of the package and not its first letters.
    """
    files = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in _SKIPPED_FOLDERS]
        files += [Path(parent, name) for name in names if name.endswith(".py")]
    files.sort(key=lambda file: _hash(file.relative_to(folder).as_posix()))
    taken: list[Path] = []
    size = 0
    for file in files:
        size += file.stat().st_size
        if max_bytes is not None and size > max_bytes and taken:
            break
        taken.append(file)
    return taken


def docstrings(file: Path) -> list[tuple[str, str]]:
    """`(docstring, signature)` of everything documented in one file, and long texts passed to calls at module level (numpy and torch document their
    compiled functions that way). A file that cannot be read or parsed has none."""
    try:
        source = file.read_text(encoding="utf-8")
        # A cheap test first: parsing is what takes the time.
        if '"""' not in source and "'''" not in source:
            return []
        tree = ast.parse(source)
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError):
        return []
    return list(_texts(tree))


def _texts(tree: ast.Module) -> Iterator[tuple[str, str]]:
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            if text := ast.get_docstring(node):
                yield text, _signature(node)
            pending.extend(reversed(node.body))
        elif isinstance(node, (ast.If, ast.Try)):
            pending.extend(reversed(node.body))
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            for literal in ast.walk(node.value):
                if isinstance(literal, ast.Constant) and isinstance(literal.value, str):
                    text = inspect.cleandoc(literal.value)
                    if len(text) >= _MIN_LITERAL and "\n" in text:
                        yield text, ""


def _signature(node: ast.AST) -> str:
    if isinstance(node, ast.ClassDef):
        return f"class {node.name}"
    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return ""
    arguments = node.args
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
    names += [f"*{arguments.vararg.arg}"] if arguments.vararg else []
    names += [argument.arg for argument in arguments.kwonlyargs]
    names += [f"**{arguments.kwarg.arg}"] if arguments.kwarg else []
    return f"def {node.name}({', '.join(name for name in names if name not in ('self', 'cls'))})"


def split_paragraphs(text: str) -> tuple[str, ...]:
    """Blocks of a text that are separated by empty lines."""
    blocks = (block.strip("\n") for block in re.split(r"\n(?:[ \t]*\n)+", text))
    return tuple(block.rstrip() for block in blocks if block.strip())


def paragraph_key(paragraph: str) -> str:
    """What of a paragraph decides its split: its first words, lower case, letters only, without package names.

    Paragraphs that begin alike (the same parameter described in ten functions) get the same key and therefore the
    same split: a held-out paragraph has no near copy in the training text.
    """
    words = re.findall(r"[a-z]+", _PACKAGE_NAMES.sub(" ", paragraph).lower())
    return " ".join(words[:_KEY_WORDS])


def split_of(paragraph: str) -> Split:
    """The split of a paragraph: 12 % test, 4 % validation, by a hash of [`paragraph_key`]."""
    percentile = _hash(paragraph_key(paragraph)) % 100
    if percentile < _TEST_SHARE:
        return "test"
    return "validation" if percentile < _TEST_SHARE + _VALIDATION_SHARE else "train"


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def _package_documents(job: tuple[str, list[Path]]) -> list[Document]:
    source, files = job
    return [
        Document(source, split_paragraphs(text), signature) for file in files for text, signature in docstrings(file)
    ]


def extract(packages: Iterable[str], max_bytes: int | Mapping[str, int] | None = None, workers: int = 1):
    """Docstrings of packages.

    Args:
        packages: import names, and `"python"` for the standard library. Packages that are not installed are left out.
        max_bytes: limit of the source read per package.
        workers: processes. More than one only where processes can be forked (Linux).

    Returns:
        `list[Document]` without repeated docstrings, in an order that depends only on what is installed.
    """
    jobs: list[tuple[str, list[Path]]] = []
    for package in packages:
        folder = package_folder(package)
        if folder is None:
            continue
        limit = max_bytes.get(package) if isinstance(max_bytes, Mapping) else max_bytes
        files = source_files(folder, limit)
        jobs += [(package, files[start : start + 64]) for start in range(0, len(files), 64)]
    parallel = workers > 1 and sys.platform == "linux"
    context = (
        ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork")) if parallel else nullcontext()
    )
    seen: set[tuple[str, ...]] = set()
    documents = []
    with context as pool:
        for batch in pool.map(_package_documents, jobs) if pool is not None else map(_package_documents, jobs):
            for document in batch:
                if document.paragraphs and document.paragraphs not in seen:
                    seen.add(document.paragraphs)
                    documents.append(document)
    return documents


def split_texts(documents: Iterable[Document], split: Split) -> list[str]:
    """What belongs to a split: each document's paragraphs of that split, joined; documents without any are left out."""
    texts = []
    for document in documents:
        kept = [paragraph for paragraph in document.paragraphs if split_of(paragraph) == split]
        if kept:
            texts.append("\n\n".join(kept))
    return texts
