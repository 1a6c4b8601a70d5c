"""The inner loops of the kernels as compilers translate them: how many instructions, and nothing kept on the stack."""

import platform
from pathlib import Path

import pytest

import kernel_instructions


WEIGHTS = {"ternary", "int8", "int4"}


def loops(name: str, isas: tuple[str, ...], folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    compiler = kernel_instructions.COMPILERS[name]
    if missing := compiler.missing():
        pytest.skip(f"needs {', '.join(missing)}")
    found = kernel_instructions.measure(compiler, isas, folder)
    assert set(found) <= set(isas)
    for weights in found.values():
        assert set(weights) == WEIGHTS
    return found


def check(weights: dict[str, dict[str, float]], most: float) -> None:
    """At most so many instructions for 1,024 multiply-adds, and no access to the stack."""
    for kind, counts in weights.items():
        per_1024 = counts.get("with_decoding_per_1024_multiply_adds", counts["instructions_per_1024_multiply_adds"])
        assert per_1024 <= most, (kind, counts)
        assert counts["stack_accesses"] == 0 and counts.get("decoding_stack_accesses", 0) == 0, (kind, counts)


def test_arm(tmp_path):
    """64 of the instructions are products of sdot, 32 of smmla."""
    found = loops("aarch64-linux-gnu-g++", ("neon", "i8mm"), tmp_path)
    check(found["neon"], 100)
    if "i8mm" not in found:
        pytest.skip("this cross compiler does not know i8mm")
    check(found["i8mm"], 60)


@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="needs a compiler for x86-64")
def test_amx(tmp_path):
    """Four tiles loaded for four products."""
    found = loops("g++", ("amx",), tmp_path)
    if "amx" not in found:
        pytest.skip("this compiler does not know AMX")
    check(found["amx"], 1)
    for counts in found["amx"].values():
        assert counts["loads"] == counts["products"] and counts["instructions"] <= 4 * counts["products"]
