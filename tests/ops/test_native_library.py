"""How the library is found, what happens when it is not, and what processes and threads do to it."""

import json
import os
import subprocess
import sys
import threading

import pytest
import torch

import warm
from hf_bitdistill import ops
from hf_bitdistill.ops import binding


# The operators without the rest of the package, which imports transformers: seconds for each process.
OPERATORS_ALONE = """
import sys, types
from importlib.util import find_spec
places = list(find_spec("hf_bitdistill").submodule_search_locations)
sys.modules["hf_bitdistill"] = types.ModuleType("hf_bitdistill")
sys.modules["hf_bitdistill"].__path__ = places
"""

SCRIPT = """
import json, warnings
import torch
from hf_bitdistill import ops
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    try:
        for _ in range(2):
            packed = ops.int8_pack(torch.ones(4, 8, dtype=torch.int8), torch.ones(4))
            y = ops.packed_linear(torch.ones(1, 8), packed, 4).sum().item()
    except RuntimeError as error:
        y = str(error)
texts = [str(w.message) for w in caught if "hf_bitdistill" in str(w.message)]
print(json.dumps({"status": ops.status(), "warnings": texts, "y": y}))
"""


def run(**env):
    """In a process that has the operators, and has not looked for the library yet."""
    result = warm.run([sys.executable, "-c", SCRIPT], env={**os.environ, **env})
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_status_when_loaded(library):
    status = ops.status()
    assert status["loaded"] and status["reason"] is None
    assert status["isa"] in status["supported_isas"]
    assert status["supported_isas"][-1] == "scalar"
    assert status["threads"] == torch.get_num_threads()


def test_missing_library_falls_back_with_one_warning(tmp_path):
    path = str(tmp_path / "nothing.so")
    got = run(HF_BITDISTILL_LIBRARY=path)
    assert got["y"] == 32.0
    assert len(got["warnings"]) == 1 and path in got["warnings"][0]
    assert not got["status"]["loaded"] and path in got["status"]["reason"]


def test_file_that_is_no_library_falls_back(tmp_path):
    path = tmp_path / "text.so"
    path.write_text("not a library")
    got = run(HF_BITDISTILL_LIBRARY=str(path))
    assert got["y"] == 32.0 and "cannot be loaded" in got["status"]["reason"]


def test_switched_off():
    got = run(HF_BITDISTILL_NATIVE="0")
    assert got["y"] == 32.0 and "HF_BITDISTILL_NATIVE" in got["status"]["reason"]


def test_forced_instruction_set(library):
    for isa in library.supported_isas:
        got = run(HF_BITDISTILL_ISA=isa)
        assert got["status"]["isa"] == isa and got["y"] == 32.0 and not got["warnings"]


@pytest.mark.usefixtures("library")
def test_impossible_instruction_set_is_an_error():
    got = run(HF_BITDISTILL_ISA="mmx")
    assert "HF_BITDISTILL_ISA" in got["y"] and "scalar" in got["y"]
    assert not got["status"]["loaded"] and "mmx" in got["status"]["reason"]


def test_number_of_threads(library):
    x, packed = torch.randn(5, 64), ops.int8_pack(torch.ones(300, 64, dtype=torch.int8), torch.ones(300))
    expected = ops.packed_linear(x, packed, 300)
    try:
        for threads in (1, 3, 7):
            ops.set_num_threads(threads)
            assert torch.equal(ops.packed_linear(x, packed, 300), expected)
            assert library.threads == threads == ops.num_threads()
        # A machine may have more cores than the library takes threads.
        ops.set_num_threads(1000)
        assert torch.equal(ops.packed_linear(x, packed, 300), expected) and library.threads == 256
    finally:
        ops.set_num_threads(None)
    with pytest.raises(ValueError):
        ops.set_num_threads(0)


def test_out_of_memory_is_called_so(library):
    # No model that fits less memory would be tried instead.
    with pytest.raises(MemoryError, match=r"linear: .*memory"):
        library.check(11, "linear")
    with pytest.raises(binding.NativeLibraryError, match="linear"):
        library.check(12, "linear")


def test_several_python_threads(library):
    packed = ops.int8_pack(torch.randint(-127, 128, (333, 200), dtype=torch.int8), torch.rand(333))
    inputs = [torch.randn(1 + i, 200) for i in range(12)]
    expected = [ops.packed_linear(x, packed, 333) for x in inputs]
    failures = []

    def work():
        for _ in range(20):
            for x, y in zip(inputs, expected, strict=True):
                if not torch.equal(ops.packed_linear(x, packed, 333), y):
                    failures.append(x.shape)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures


COUNT_THREADS = (
    OPERATORS_ALONE
    + """
import os, torch
from hf_bitdistill import ops
torch.set_num_threads(2)
weight, scale = torch.ones((4000, 512), dtype=torch.int8), torch.ones(4000)
torch.ones(1 << 20).add(1)  # starts torch's threads
before = len(os.listdir("/proc/self/task"))
packed = ops.int8_pack(weight, scale)
y = ops.packed_linear(torch.ones(64, 512), packed, 4000)
assert (y > 0).all()
print(ops.status()["shares_torch_threads"], len(os.listdir("/proc/self/task")) - before)
"""
)


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads in /proc")
@pytest.mark.parametrize("shared", [True, False])
def test_threads_of_torch_are_shared(library, shared):
    env = {**os.environ, "HF_BITDISTILL_OPENMP": "1" if shared else "0", "OMP_NUM_THREADS": "2"}
    result = subprocess.run([sys.executable, "-c", COUNT_THREADS], env=env, capture_output=True, text=True, check=True)
    says, started = result.stdout.split()
    if shared and says == "False":
        pytest.skip("torch was built with another OpenMP than GNU's, or none")
    assert says == str(shared)
    assert int(started) == (0 if shared else 1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_fork(library):
    packed = ops.int8_pack(torch.ones((100, 64), dtype=torch.int8), torch.ones(100))
    x = torch.ones(3, 64)
    ops.set_num_threads(3)
    try:
        expected = ops.packed_linear(x, packed, 100)
        child = os.fork()
        if child == 0:
            # torch's own thread pool does not survive a fork, so the child only compares numbers.
            ok = ops.packed_linear(x, packed, 100).tolist() == expected.tolist()
            os._exit(0 if ok else 1)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        ops.set_num_threads(None)
