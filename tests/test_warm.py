"""The forks of `warm.py` are like processes that were started."""

import os
import subprocess
import sys

import pytest

import warm


pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def test_it_is_a_process_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "beside.py").write_text("name = 'beside'")
    script = tmp_path / "script.py"
    script.write_text("import beside, os, sys\nprint(beside.name, __name__, sys.argv[1:], os.environ['ONE'], os.getcwd(), 'HOME' in os.environ)\nsys.exit(7)")  # fmt: skip
    done = warm.run([sys.executable, str(script), "a b"], env={"ONE": "1"})
    assert (done.returncode, done.stderr) == (7, "")
    assert done.stdout == f"beside __main__ ['a b'] 1 {tmp_path} False\n"
    assert "ONE" not in os.environ and "beside" not in sys.modules


def test_modules_and_code():
    done = warm.run(
        [sys.executable, "-c", "import sys; print(sys.argv, 'torch' in sys.modules, 'warm' in sys.modules)", "x"]
    )
    assert done.stdout == "['-c', 'x'] True False\n"
    assert warm.run([sys.executable, "-m", "hf_bitdistill", "--version"]).returncode == 0
    with pytest.raises(ValueError, match="can be warm"):
        warm.run(["ls"])


def test_libraries_alone_are_imported():
    code = "import sys; print([name in sys.modules for name in ('transformers', 'hf_bitdistill', 'optimum.bitnet', 'peft')])"
    assert warm.run([sys.executable, "-c", code], ours=False).stdout == "[True, False, False, False]\n"
    assert warm.run([sys.executable, "-c", code]).stdout == "[True, True, True, True]\n"
    assert warm.run([sys.executable, "-c", "raise SystemExit(3)"], ours=False).returncode == 3


@pytest.mark.parametrize("ours", [True, False])
def test_an_end_as_of_every_interpreter(ours):
    code = "import atexit, sys; atexit.register(print, 'last'); print('first'); sys.exit(5)"
    for ends, told in ((False, "first\n"), (True, "first\nlast\n")):
        done = warm.run([sys.executable, "-c", code], ours=ours, ends=ends)
        assert (done.returncode, done.stdout, done.stderr) == (5, told, "")


def test_errors_and_signals():
    done = warm.run([sys.executable, "-c", "1 / 0"])
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr
    done = warm.run([sys.executable, "-c", "raise SystemExit('no')"])
    assert (done.returncode, done.stderr) == (1, "no\n")
    assert warm.run([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]).returncode == -9
    with pytest.raises(subprocess.TimeoutExpired):
        warm.run([sys.executable, "-c", "import time; time.sleep(60)"], timeout=0.1)


def test_processes_that_meet():
    code = "import os, torch.distributed as d; d.init_process_group('gloo'); x = [None] * 2; d.all_gather_object(x, d.get_rank()); print(x, flush=True); os._exit(0)"
    text = warm.launch([sys.executable, "-c", code], 2, os.environ)
    assert text.count("[0, 1]") == 2
    with pytest.raises(AssertionError, match="the other one"):
        warm.launch(
            [sys.executable, "-c", "import os; int(os.environ['RANK']) and exit('the other one')"], 2, os.environ
        )
