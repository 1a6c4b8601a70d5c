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

# Prints the page faults of blocks of 64 MB that are wanted and freed again and again: outside, inside, and outside again.
COUNT = """
import resource, torch
from hf_bitdistill.machine.freed_memory import freed_memory_kept

def faults():
    torch.ones(1 << 24)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(1 << 24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults(), end=" ")
with freed_memory_kept() as kept:
    print(faults(), end=" ")
    with freed_memory_kept():
        pass
    print(faults(), end=" ")
print(faults(), kept)
"""


def run(**environment: str) -> list[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUN"))}
    found = subprocess.run(
        [sys.executable, "-c", COUNT], env={**clean, **environment}, stdout=subprocess.PIPE, text=True, check=True
    )
    return found.stdout.split()


@glibc
def test_pages_are_cleared_once():
    outside, inside, still_inside, after, kept = run()
    assert kept == "True"
    assert int(inside) < 20 and int(still_inside) < 20
    # (Few, where the system's pages are huge.)
    assert int(outside) > 4 * max(int(inside), 1) and int(after) > 4 * max(int(inside), 1)


@glibc
def test_what_the_user_says_is_left():
    assert run(MALLOC_TOP_PAD_="65536")[-1] == "False"
    assert run(GLIBC_TUNABLES="glibc.malloc.arena_max=2")[-1] == "False"


def test_other_systems(monkeypatch):
    monkeypatch.setattr(freed_memory.platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(ctypes, "CDLL", lambda *_: pytest.fail("there is no such library"))
    with freed_memory_kept() as kept:
        assert not kept


def test_unwanted(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda *_: pytest.fail("an accelerator's memory is not the C library's"))
    with freed_memory_kept(False) as kept:
        assert not kept
