"""`bitdistill exec` and `bitdistill autoload`: programs that load a packed student and never import this package."""

import os
import subprocess
import sys
import sysconfig
import venv

import pytest

from hf_bitdistill import pack
from hf_bitdistill.autoload import start_file
from hf_bitdistill.cli.main import main
from students import make_student


# Exits with the number that it reads, so that arguments, input, output and status are all looked at.
PROGRAM = """
import subprocess, sys
from transformers import AutoModelForCausalLM, pipeline

model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
print(type(model.get_submodule("model.layers.0.mlp.down_proj")).__name__, __name__, sys.argv[2:])
answer = pipeline("text-generation", model=sys.argv[1])("a dull story", max_new_tokens=4, do_sample=False)
assert len(answer[0]["generated_text"]) > len("a dull story")
hook = "import sys; print(any(type(finder).__name__.startswith('HfBitDistill') for finder in sys.meta_path))"
print(subprocess.run([sys.executable, "-c", hook], capture_output=True, text=True).stdout.strip())
sys.exit(int(sys.stdin.read()))
"""


@pytest.fixture
def packed(tmp_path, tiny_tokenizer):
    pack(make_student(vocab_size=384)).save_pretrained(tmp_path / "packed")
    tiny_tokenizer.save_pretrained(tmp_path / "packed")
    (tmp_path / "program.py").write_text(PROGRAM)
    return tmp_path / "packed"


@pytest.fixture
def plain_environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith("PYTHON")]:
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("plain_environment")
def test_autoload(packed, tmp_path, monkeypatch):
    venv.create(tmp_path / "venv", symlinks=True, with_pip=False)
    (own,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    # All that is installed here, editable installations included.
    (own / "all.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    python = str(tmp_path / "venv/bin/python")
    monkeypatch.setattr(start_file, "environment_folder", lambda: own)
    with monkeypatch.context() as here:
        here.setattr(sys, "executable", python)
        assert main(["autoload", "on"]) == 0
    command = [python, str(tmp_path / "program.py"), str(packed), "--flag", "a b"]
    done = subprocess.run(command, input="7", capture_output=True, text=True, timeout=280)
    assert done.stdout.splitlines() == ["TernaryLinear __main__ ['--flag', 'a b']", "True"], done.stderr
    assert done.returncode == 7


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a process that replaces itself")
@pytest.mark.usefixtures("plain_environment")
def test_exec_is_the_program(tmp_path):
    """Process, arguments, input, output, exit status and hook. (A student is loaded like this in the test of the example.)"""
    code = "import os, sys; print(os.getpid(), sys.argv[1:], type(sys.meta_path[0]).__name__); sys.exit(int(sys.stdin.read()))"
    (tmp_path / "in").write_text("7")
    with open(tmp_path / "in") as given, open(tmp_path / "out", "wb") as out:
        child = os.fork()
        if child == 0:
            os.dup2(given.fileno(), 0)
            os.dup2(out.fileno(), 1)
            os._exit(main(["exec", "--", "-c", code, "--flag", "a b"]))
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 7
    assert (tmp_path / "out").read_text() == f"{child} ['--flag', 'a b'] HfBitDistillHook\n"


def test_what_is_refused_is_one_line(capsys):
    assert main(["exec", "--", "no-such-program"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("bitdistill exec: error: there is no program 'no-such-program'") and error.count("\n") == 1


def test_what_is_run(monkeypatch, tmp_path):
    called = []
    monkeypatch.setattr(os, "execve", lambda *arguments: called.append(arguments))
    assert main(["exec", "-m", "module", "--", "-x"]) == 0
    ((program, command, environment),) = called
    assert (program, command) == (sys.executable, [sys.executable, "-m", "module", "--", "-x"])
    assert environment["PYTHONPATH"].split(os.pathsep)[0].endswith("path")


def test_status(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(start_file, "environment_folder", lambda: tmp_path)
    monkeypatch.setattr(start_file.site, "ENABLE_USER_SITE", False)
    active = [False]
    monkeypatch.setattr(start_file, "is_active", lambda: active[0])

    def said(action):
        assert main(["autoload", action]) == 0
        return capsys.readouterr().out

    file = tmp_path / start_file.FILE_NAME
    assert said("status") == "off\n" and said("off") == "off\n"
    active[0] = True
    assert said("on") == said("status") == f"on: {file}\n"
    file.write_text("# nothing\n")
    active[0] = False
    assert f"on: {file}, of another installation" in said("status")
    assert said("off") == f"off: removed {file}\n" and not file.exists()
    assert main(["autoload", "on"]) == 1 and "does not run start-up files" in capsys.readouterr().err
