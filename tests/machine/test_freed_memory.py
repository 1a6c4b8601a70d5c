"""Freed memory that the C library keeps while something runs."""

import ctypes
import os
import platform
import subprocess
import sys

import pytest

from hf_bitdistill.machine import freed_memory
from hf_bitdistill.machine.freed_memory import freed_memory_kept


glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")

# Prints the page faults of blocks of 64 MB that are wanted and freed again and again, outside and twice inside; then the MB that are in memory
# before, inside and behind, beside blocks of 512 MB that were freed.
COUNT = """
import importlib.util, os, resource, sys, torch

# Without the package around it, which imports for seconds.
spec = importlib.util.spec_from_file_location("freed_memory", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
freed_memory_kept = module.freed_memory_kept

def faults():
    for _ in range(24):  # (small blocks take a place in what was freed, and the heap grows a few times)
        torch.ones(1 << 24)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(1 << 24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20

print(faults(), end=" ")
with freed_memory_kept() as kept:
    print(faults(), end=" ")
    with freed_memory_kept():
        pass
    print(faults(), end=" ")
before = resident()
with freed_memory_kept():
    torch.ones(1 << 27)
    inside = resident()
print(before, inside, resident(), kept)
"""


def run() -> list[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUN"))}
    found = subprocess.run(
        [sys.executable, "-c", COUNT, freed_memory.__file__], env=clean, stdout=subprocess.PIPE, text=True, check=True
    )
    return found.stdout.split()


@glibc
def test_pages_are_cleared_once_and_given_back_at_the_end():
    *numbers, kept = run()
    outside, inside, still_inside, before, most, after = map(int, numbers)
    assert kept == "True"
    # (Fewer, where the system's pages are huge.)
    assert inside < 20 and still_inside < 20 and outside > 4 * max(inside, 1)
    assert most > before + 400 and after < before + 200


@glibc
@pytest.mark.parametrize("said", ["MALLOC_TOP_PAD_", "GLIBC_TUNABLES", "LD_PRELOAD"])
def test_what_the_user_says_is_left(monkeypatch, said):
    for name in [
        name for name in os.environ if name.startswith("MALLOC_") or name in ("GLIBC_TUNABLES", "LD_PRELOAD")
    ]:
        monkeypatch.delenv(name)
    with freed_memory_kept() as kept:
        assert kept
    monkeypatch.setenv(said, "x")
    with freed_memory_kept() as kept:
        assert not kept


def test_other_systems(monkeypatch):
    monkeypatch.setattr(freed_memory.platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(ctypes, "CDLL", lambda *_: pytest.fail("there is no such library"))
    with freed_memory_kept() as kept:
        assert not kept


def test_unwanted(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda *_: pytest.fail("an accelerator's memory is not the C library's"))
    with freed_memory_kept(False) as kept:
        assert not kept
