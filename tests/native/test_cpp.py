"""Builds the C++ tests with CMake and runs them: as they are, under sanitizers, fuzzed, and for ARM in an emulator."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest
from objects import ROOT, compiler_of, installed_objects


TOOLCHAIN = ROOT / "cmake" / "aarch64-linux-gnu.cmake"

pytestmark = [
    pytest.mark.skipif(not shutil.which("cmake"), reason="needs cmake"),
    pytest.mark.skipif(not (shutil.which("c++") or shutil.which("g++")), reason="needs a C++ compiler"),
    pytest.mark.timeout(900),
]


def build_and_run(folder: Path, *options: str, target: str = "native_tests", only: str | None = None) -> None:
    """`only`: the one test to run."""
    jobs = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    # Whoever has it compiles only what changed since the last time.
    launcher = ["-DCMAKE_CXX_COMPILER_LAUNCHER=ccache"] if shutil.which("ccache") else []
    for command in (
        ["cmake", "-S", str(ROOT), "-B", str(folder), "-DBITDISTILL_TESTS=ON", *launcher, *options],
        ["cmake", "--build", str(folder), "-j", jobs, "--target", target],
        ["ctest", "--test-dir", str(folder), "--output-on-failure", *(["-R", f"^{only}$"] if only else [])],
    ):
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    assert "100% tests passed" in result.stdout


def test_release(tmp_path):
    """The objects of the installation, where they are those of the sources."""
    objects = installed_objects()
    installed = [f"-DBITDISTILL_OBJECTS={objects}", f"-DCMAKE_CXX_COMPILER={compiler_of(objects)}"] if objects else []
    build_and_run(tmp_path, *installed)


@pytest.mark.slow
def test_sanitizers(tmp_path):
    # With emulated instructions too: on a CPU without them nothing else runs the kernels that use them.
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    emulated = ["-DBITDISTILL_EMULATE_VNNI=ON"] if x86 else []
    build_and_run(tmp_path, "-DBITDISTILL_SANITIZE=address,undefined", *emulated)


@pytest.mark.slow
def test_libfuzzer(tmp_path):
    """Inputs that the coverage chose. `fuzz_packed_weight` gives the same target random ones, in each of the other builds."""
    if not shutil.which("clang++"):
        pytest.skip("needs clang++; the same target has run with random inputs instead")
    source = tmp_path / "probe.cpp"
    source.write_text('extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }')
    probe = ["clang++", "-fsanitize=fuzzer,address", str(source), "-o", str(tmp_path / "probe")]
    if subprocess.run(probe, capture_output=True).returncode != 0:
        pytest.skip("this clang++ comes without libFuzzer")
    # Undefined behaviour is looked for by test_sanitizers; here it would triple the time.
    options = ["-DCMAKE_CXX_COMPILER=clang++", "-DBITDISTILL_LIBFUZZER=ON", "-DBITDISTILL_SANITIZE=address"]
    build_and_run(tmp_path / "build", *options, target="libfuzzer_packed_weight", only="libfuzzer_packed_weight")


@pytest.mark.slow
@pytest.mark.skipif(
    not (
        shutil.which("aarch64-linux-gnu-g++") and (shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static"))
    ),
    reason="needs g++-aarch64-linux-gnu and qemu-user",
)
def test_arm(tmp_path):
    build_and_run(tmp_path, f"-DCMAKE_TOOLCHAIN_FILE={TOOLCHAIN}")
