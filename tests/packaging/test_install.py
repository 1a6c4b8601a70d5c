"""What the build makes where there is no compiler: a message that helps, or the pure-Python package when asked for it."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[2]

USE = """
import sys
# An editable install's finder comes before the path.
sys.meta_path[:] = [finder for finder in sys.meta_path if "bitdistill" not in type(finder).__module__]
import torch, transformers, hf_bitdistill
from hf_bitdistill import apply_bitnet, pack; from hf_bitdistill import ops
config = transformers.LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
)
model = pack(apply_bitnet(transformers.LlamaForCausalLM(config)))
tokens = model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=2, do_sample=False, eos_token_id=None)
assert tokens.shape == (1, 5)
assert not ops.status()["loaded"]
print(hf_bitdistill.__file__)
"""


def test_pure_python_package(tmp_path):
    pytest.importorskip("scikit_build_core")
    # Compilers are kept out of reach too: none may be needed.
    env = {**os.environ, "HF_BITDISTILL_SKIP_NATIVE": "1", "CXX": "/nonexistent"}
    build = "import sys; from scikit_build_core.build import build_wheel; print(build_wheel(sys.argv[1]))"
    result = subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-2000:]
    wheel = next(tmp_path.glob("*.whl"))
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    assert not [name for name in names if name.endswith((".so", ".dylib", ".dll"))]
    assert {"hf_bitdistill/py.typed", "hf_bitdistill/quickstart/teacher/model.safetensors"} <= set(names)

    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    env.pop("HF_BITDISTILL_LIBRARY", None)
    result = subprocess.run([sys.executable, "-c", USE], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    assert str(tmp_path / "site") in result.stdout
    assert "slow" in result.stderr  # said, not silent


@pytest.mark.skipif(not shutil.which("cmake") or not shutil.which("ninja"), reason="needs cmake and ninja")
@pytest.mark.parametrize("compiler", [None, "/nonexistent"])
def test_no_compiler_is_explained(compiler, tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    env = {**os.environ, "PATH": str(tools)}
    env.pop("CXX", None)
    if compiler:
        env["CXX"] = compiler
    command = [shutil.which("cmake"), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja')}"]
    command += ["-S", str(ROOT), "-B", str(tmp_path / "build")]
    result = subprocess.run(command, env=env, capture_output=True, text=True)
    words = " ".join(result.stderr.split())
    assert result.returncode != 0
    assert "no working C++ compiler" in words and "HF_BITDISTILL_SKIP_NATIVE=1" in words
    # Nothing of it is remembered: the next try finds a compiler that was installed meanwhile.
    assert "CMAKE_CXX_COMPILER:" not in (tmp_path / "build" / "CMakeCache.txt").read_text()


def test_the_check_of_a_wheel():
    """`scripts/check_wheel.py`, which tries a wheel's kernels where there is no torch; here on this environment's installation."""
    command = [sys.executable, str(ROOT / "scripts/check_wheel.py")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if "no native library" in result.stderr:
        pytest.skip("this environment has no native library")
    assert result.returncode == 0, result.stderr
    assert "scalar" in result.stdout
