"""Which objects are taken for the installed ones: those of the sources as they are now, built as the library is shipped."""

import os

import pytest
from objects import compiler_of, installed_objects


@pytest.fixture
def tree(tmp_path):
    """A repository with two sources and a build of them."""
    build = tmp_path / "build" / "tag"
    objects = build / "CMakeFiles" / "bitdistill_objects.dir"
    for file in ("csrc/a.cpp", "csrc/b/c.cpp", "csrc/a.h", "CMakeLists.txt"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("")
        os.utime(tmp_path / file, (1000, 1000))
    for name in ("csrc/a.cpp.o", "csrc/b/c.cpp.o"):
        (objects / name).parent.mkdir(parents=True, exist_ok=True)
        (objects / name).write_text("")
        os.utime(objects / name, (2000, 2000))
    settings = {"CMAKE_BUILD_TYPE:STRING": "Release", "CMAKE_HOME_DIRECTORY:INTERNAL": tmp_path, "BITDISTILL_SANITIZE:STRING": ""}  # fmt: skip
    settings |= {"BITDISTILL_EMULATE_VNNI:BOOL": "OFF", "BITDISTILL_EVEX_VNNI:BOOL": "OFF"}
    settings |= {"CMAKE_CXX_COMPILER:STRING": "/usr/bin/c++"}
    (build / "CMakeCache.txt").write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    return tmp_path, objects


def test_an_installation_of_these_sources(tree):
    root, objects = tree
    assert installed_objects(root) == objects
    assert compiler_of(objects) == "/usr/bin/c++"


@pytest.mark.parametrize("changed", ["csrc/a.cpp", "csrc/a.h", "CMakeLists.txt"])
def test_a_source_that_has_changed(tree, changed):
    root, _ = tree
    os.utime(root / changed, (3000, 3000))
    assert installed_objects(root) is None


def test_a_source_more_or_less(tree):
    root, objects = tree
    (root / "csrc/new.cpp").write_text("")
    os.utime(root / "csrc/new.cpp", (1000, 1000))
    assert installed_objects(root) is None
    (objects / "csrc/new.cpp.o").write_text("")
    assert installed_objects(root) == objects
    (root / "csrc/new.cpp").unlink()
    assert installed_objects(root) is None


@pytest.mark.parametrize(
    "one, other",
    [("=Release", "=Debug"), ("SANITIZE:STRING=", "SANITIZE:STRING=address"), ("VNNI:BOOL=OFF", "VNNI:BOOL=ON")],
)
def test_another_kind_of_build(tree, one, other):
    root, objects = tree
    cache = objects.parents[1] / "CMakeCache.txt"
    cache.write_text(cache.read_text().replace(one, other))
    assert installed_objects(root) is None


def test_without_an_installation(tmp_path, tree):
    root, objects = tree
    (objects.parents[1] / "CMakeCache.txt").unlink()
    assert installed_objects(root) is None
