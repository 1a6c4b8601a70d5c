"""docs/architecture.md says of every import between rooms that it may be, and of none that is not there; so does its picture."""

import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from documentation import rooms  # noqa: E402


# What is of users, and so may be anywhere; everything else is in a room.
AT_THE_ROOT = {"__init__", "__main__", "_compat", "config"}
# Modules of one name that mean the same: options of something, what a folder's others are made of, the text of a training, what is called to run it.
SAME_MEANING = {"__init__", "base", "config", "corpus", "run", "settings"}


@pytest.fixture(scope="module")
def page():
    return rooms.PAGE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def imports():
    return rooms.all_imports()


@pytest.fixture(scope="module")
def table(page):
    return {room: targets for room, (_, targets) in rooms.read_table(page).items()}


@pytest.fixture(scope="module")
def exceptions(page):
    return rooms.read_exceptions(page)


def test_every_import_is_in_the_table(imports, table, exceptions):
    wrong = [
        f"{each.module}:{each.line} imports {each.target}: `{rooms.room_of(each.module)}` may not import `{rooms.room_of(each.target)}`"
        for each in rooms.between_rooms(imports)
        if rooms.room_of(each.target) not in table.get(rooms.room_of(each.module), set())
        and (each.module, rooms.room_of(each.target)) not in exceptions
    ]
    assert len(imports) > 1000
    assert not wrong, "\n".join(wrong)


def test_everything_in_the_table_is_imported(imports, table, exceptions):
    there = rooms.arrows(imports, exceptions)
    unused = [
        f"`{room}` imports nothing of `{to}`" for room in table for to in sorted(table[room] - there.get(room, set()))
    ]
    assert not unused, "\n".join(unused)


def test_every_room_has_a_row(page, table):
    here = {rooms.room_of(module) for module in rooms.modules()}
    assert set(table) == here - {"optimum"}
    assert all(text.strip() for text, _ in rooms.read_table(page).values())


def test_imports_go_one_way(table):
    order = list(table)
    back = [f"`{room}` -> `{to}`" for room in order for to in table[room] if order.index(to) >= order.index(room)]
    assert not back, "rows that import rows below them: " + ", ".join(back)


def test_exceptions_are_few_made_late_and_there(imports, table, exceptions):
    assert len(exceptions) <= 4
    for (module, room), why in exceptions.items():
        found = [each for each in imports if each.module == module and rooms.room_of(each.target) == room]
        assert found and why, f"{module} does not import {room}"
        assert all(each.called for each in found), f"{module} imports {room} when it is imported"
        assert room not in table[rooms.room_of(module)], f"{module} -> {room} is no exception"


def test_the_picture_shows_the_table(table):
    picture = rooms.PICTURE.read_text(encoding="utf-8")
    shown = rooms.drawn(picture)
    assert {room: targets for room, targets in rooms.reduced(table).items() if targets} == shown
    # What is left out of the picture follows from what is in it, and nothing else does.
    assert rooms.below(shown) == {
        room: targets for room, targets in rooms.below(table).items() if room in rooms.below(shown)
    }
    assert picture == rooms.draw(table), "python scripts/documentation/rooms.py draws it again"


def test_no_import_at_the_start_comes_back(imports):
    """No two modules need each other to be imported."""
    graph = {}
    for each in imports:
        if not each.called and each.module != each.target:
            graph.setdefault(each.module, set()).add(each.target)
    # A package's `__init__` is no part of it for its own modules, which are imported while it is.
    graph = {module: {to for to in targets if not module.startswith(f"{to}.")} for module, targets in graph.items()}
    done, path = set(), []

    def visit(module):
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            path.append(module)
            for to in sorted(graph.get(module, set())):
                visit(to)
            done.add(path.pop())

    for module in sorted(graph):
        visit(module)


def test_one_name_is_one_thing():
    """No two rooms have modules of one name; commands are called as what they run."""
    where = {}
    for module, file in rooms.modules().items():
        if rooms.room_of(module) not in ("cli", "optimum.bitnet", "optimum.commands", "hf_bitdistill_cli"):
            where.setdefault(file.stem, []).append(module)
    assert not [modules for name, modules in where.items() if len(modules) > 1 and name not in SAME_MEANING]


def test_nothing_else_is_at_the_root():
    assert {file.stem for file in (ROOT / "src" / rooms.PACKAGE).glob("*.py")} <= AT_THE_ROOT


def test_tests_are_where_what_they_test_is():
    """A folder of tests is called as a room, or as what is no room."""
    others = {"benchmarks", "distributed", "documentation", "examples", "faults", "fuzz", "interop"}
    others |= {"native", "notebooks", "optimum", "packaging"}
    folders = {folder.name for folder in (ROOT / "tests").iterdir() if list(folder.glob("**/test_*.py"))}
    assert folders - others <= {rooms.room_of(module) for module in rooms.modules()}


# ---- The reader of imports itself ----

KNOWN = dict.fromkeys(
    [
        "hf_bitdistill",
        "hf_bitdistill.config",
        "hf_bitdistill.a",
        "hf_bitdistill.a.x",
        "hf_bitdistill.b",
        "optimum.bitnet",
    ]
)


def read(code, module="hf_bitdistill.a.x", is_package=False):
    return [(each.target, each.name, each.called) for each in rooms.imports_of(module, code, KNOWN, is_package)]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("from ..b import y", ("hf_bitdistill.b", "y", False)),
        ("from .. import b", ("hf_bitdistill.b", None, False)),
        ("from . import x", ("hf_bitdistill.a.x", None, False)),
        ("import hf_bitdistill.config as c", ("hf_bitdistill.config", None, False)),
        ("from hf_bitdistill import pack", ("hf_bitdistill", "pack", False)),
        ("def f():\n    from ..config import y", ("hf_bitdistill.config", "y", True)),
        ("async def f():\n    import optimum.bitnet", ("optimum.bitnet", None, True)),
        ("if TYPE_CHECKING:\n    from ..b import y", ("hf_bitdistill.b", "y", True)),
        ("try:\n    from ..b import y\nexcept ImportError:\n    pass", ("hf_bitdistill.b", "y", False)),
    ],
)
def test_an_import_is_found(code, expected):
    assert read(code) == [expected]


def test_imports_of_packages_and_of_others():
    assert read("from .x import y", "hf_bitdistill.a", is_package=True) == [("hf_bitdistill.a.x", "y", False)]
    assert read("import os, torch.nn\nfrom pathlib import Path\nfrom transformers import x") == []


def test_an_arrow_against_the_table_is_found(imports, table, exceptions):
    bad = rooms.Import("hf_bitdistill.quantization.ternary", 1, "hf_bitdistill.cli.main", "run", True)
    with pytest.raises(AssertionError, match=r"quantization.ternary:1 .*`quantization` may not import `cli`"):
        test_every_import_is_in_the_table([*imports, bad], table, exceptions)
    with pytest.raises(AssertionError, match="`quantization` imports nothing of `cli`"):
        test_everything_in_the_table_is_imported(imports, {**table, "quantization": {"cli"}}, exceptions)


def test_facts_of_the_package_are_no_arrows():
    version = rooms.Import("hf_bitdistill.hub.push", 1, "hf_bitdistill", "__version__", True)
    registers = rooms.Import("hf_bitdistill.verify.loaders", 1, "hf_bitdistill", None, True)
    public = rooms.Import("optimum.bitnet.modeling_base", 1, "hf_bitdistill", "pack", False)
    assert rooms.between_rooms([version, registers, public]) == [public]
