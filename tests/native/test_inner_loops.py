"""What compilers make of the inner loops of AVX2 and AVX-VNNI: sums stay in registers, and so do those of the loop that
measures the peak. Nothing is run, so these tests need no such CPU."""

import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from machine_code import Loop, functions, innermost_loops


ROOT = Path(__file__).resolve().parents[2]
PRODUCTS = ("vpmaddubsw", "vpdpbusd")
OBJDUMP = shutil.which("objdump") or shutil.which("llvm-objdump")

# Most tokens a tile, and instructions of the arithmetic for 32 multiply-adds.
KERNELS = {"avx2": (4, 2), "avx_vnni": (5, 1)}
# What decoding, loading and counting may add to these, for so many tokens.
MOST_OVERHEAD = {1: 3.0, 2: 2.0, 3: 1.6, 4: 1.5, 5: 1.2}

pytestmark = [
    pytest.mark.skipif(
        platform.machine().lower() not in ("x86_64", "amd64") or sys.platform != "linux",
        reason="reads x86-64 machine code of Linux",
    ),
    pytest.mark.skipif(not OBJDUMP, reason="needs objdump or llvm-objdump"),
    pytest.mark.timeout(900),
]


def compilers() -> list[str]:
    """Every installed one, once."""
    found = {}
    for name in ("g++", "g++-11", "g++-12", "g++-13", "g++-14", "g++-15", "clang++"):
        if path := shutil.which(name):
            version = subprocess.run([path, "--version"], capture_output=True, text=True).stdout.splitlines()[0]
            found.setdefault(re.sub(r"^\S+ ", "", version), name)
    return list(found.values())


def flags(kernel: str) -> list[str]:
    """Those of the project."""
    text = (ROOT / "CMakeLists.txt").read_text()
    release = re.search(r'CMAKE_CXX_FLAGS_RELEASE "(.*?)"', text)[1].split()
    common = re.search(r"target_compile_options\(bitdistill_objects PRIVATE ([^\n$]*)", text)[1].split()
    own = re.findall(rf'csrc/kernels/{kernel}\.cpp PROPERTIES\s+COMPILE_OPTIONS "([^"$]*)"', text)[0].split(";")
    assert "-O3" in release and "-ffp-contract=off" in common and "-mavx2" in own
    return ["-std=c++17", "-fPIC", f"-I{ROOT / 'csrc'}", "-Wno-psabi", *release, *common, *own]


def product_loops(file: Path) -> list[Loop]:
    """The innermost loops with 8-bit products."""
    code = functions(OBJDUMP, file)
    return [loop for name, body in code.items() for loop in innermost_loops(name, body, having=PRODUCTS)]


def products(loop: Loop) -> int:
    return loop.count(*PRODUCTS)


def compile_object(compiler: str, source: Path, options: list[str], folder: Path) -> Path:
    target = folder / f"{source.stem}.o"
    command = [compiler, *options, "-c", str(source), "-o", str(target)]
    result = subprocess.run(command, capture_output=True, text=True)
    if "unrecognized" in result.stderr or "unknown argument" in result.stderr:
        pytest.skip(f"this {compiler} does not know {options[-1]}")
    assert result.returncode == 0, result.stderr
    return target


@pytest.fixture(scope="module", params=[(c, k) for c in compilers() for k in KERNELS], ids="-".join)
def kernel_and_loops(request, tmp_path_factory):
    compiler, kernel = request.param
    folder = tmp_path_factory.mktemp("objects")
    file = compile_object(compiler, ROOT / "csrc" / "kernels" / f"{kernel}.cpp", flags(kernel), folder)
    return kernel, product_loops(file)


def test_sums_stay_in_registers(kernel_and_loops):
    kernel, loops = kernel_and_loops
    most_tokens, arithmetic = KERNELS[kernel]
    seen = set()
    for loop in loops:
        found = re.search(r"multiply_panel<.*?(Ternary|Int4|Int8)Codes.*, (\d+), \d+>", loop.function)
        # For one token and int4 the loop goes over groups of two chunks. Its other end turns sums into floats.
        if not found or loop.named("vcvtdq2ps", "call"):
            continue
        form, tokens = found[1], int(found[2])
        seen.add((form, tokens))
        where = f"{loop.function}: {[f'{each.name} {each.operands}' for each in loop.vector_stores]}"
        assert not loop.vector_stores, where
        assert products(loop) == 8 * tokens or (form, tokens, products(loop)) == ("Int4", 1, 16), where
        if form == "Ternary":
            each = len(loop.instructions) / products(loop)
            assert each <= arithmetic + MOST_OVERHEAD[tokens], where
        # Few tokens wait for the memory, more do not.
        assert bool(loop.named("prefetch")) == (tokens <= 2), where
    assert seen == {(form, n) for form in ("Ternary", "Int4", "Int8") for n in range(1, most_tokens + 1)}


def test_peak_is_that_of_the_arithmetic(kernel_and_loops):
    kernel, loops = kernel_and_loops
    (loop,) = [each for each in loops if "multiply_add_loop" in each.function]
    sums = 12
    assert products(loop) == sums
    # Nothing but the arithmetic, a counter, a comparison and a jump.
    assert len(loop.instructions) <= sums * KERNELS[kernel][1] + 3
    assert not [each for each in loop.instructions if "(" in each.operands]


SPILLING = """
#include <immintrin.h>
void multiply(const __m256i* codes, const __m256i* x, long steps, __m256i* sums) {
  __m256i acc[20];
#pragma GCC unroll 20
  for (int i = 0; i < 20; ++i) acc[i] = _mm256_setzero_si256();
  for (long s = 0; s < steps; ++s) {
#pragma GCC unroll 20
    for (int i = 0; i < 20; ++i) acc[i] = _mm256_add_epi16(acc[i], _mm256_maddubs_epi16(codes[s], x[20 * s + i]));
  }
#pragma GCC unroll 20
  for (int i = 0; i < 20; ++i) sums[i] = acc[i];
}
"""


@pytest.mark.parametrize("compiler", compilers())
def test_a_spill_is_seen(compiler, tmp_path):
    """20 sums do not fit into 16 registers."""
    source = tmp_path / "spilling.cpp"
    source.write_text(SPILLING)
    (loop,) = product_loops(compile_object(compiler, source, ["-O3", "-mavx2"], tmp_path))
    assert products(loop) == 20 and len(loop.vector_stores) >= 4
