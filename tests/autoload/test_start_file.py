"""The start-up file, in an environment made here."""

import shutil
import sysconfig
import venv
from pathlib import Path

import pytest
from fakes import make_fakes, python

from hf_bitdistill.autoload import start_file


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """A virtual environment, of which `start_file` believes that it runs; gives its Python."""
    venv.create(tmp_path / "venv", symlinks=True, with_pip=False)
    (purelib,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    executable = tmp_path / "venv/bin/python"
    monkeypatch.setattr(start_file, "environment_folder", lambda: purelib)
    monkeypatch.setattr(start_file.sys, "executable", str(executable))
    monkeypatch.setattr(start_file.site, "ENABLE_USER_SITE", False)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    return executable


def test_on_and_off(environment, tmp_path):
    assert start_file.installed() == [] and not start_file.is_active()
    file = start_file.install()
    assert start_file.installed() == [file] and start_file.is_current(file) and start_file.is_active()
    assert len(file.read_text().splitlines()) == 2
    assert start_file.install() == file  # again
    code = "import transformers.modeling_utils as m; print(m.registered)"
    fakes = make_fakes(tmp_path / "fakes")
    assert python("-c", code, executable=environment, path=[fakes]).stdout == "[True]\n"
    names = "from lm_eval.api.registry import names; print(sorted(names()))"
    assert python("-c", names, executable=environment, path=[fakes]).stdout == "['bitnet', 'hf']\n"
    assert start_file.remove() == [file] and list(file.parent.glob("*hf_bitdistill*")) == []
    assert python("-c", code, executable=environment, path=[fakes]).stdout == "[]\n"
    assert start_file.remove() == []


def test_it_imports_nothing_and_reads_nothing(environment, tmp_path):
    """No module more at the start of Python than without it, and the hook unread: what is left is one class."""
    code = "import sys; print(sorted(sys.modules), [type(finder).__name__ for finder in sys.meta_path])"
    before = python("-c", code, executable=environment).stdout
    start_file.install()
    after = python("-c", code, executable=environment).stdout
    assert after.replace("'HfBitDistillStart', ", "", 1) == before != after
    show = "import transformers, sys; print([f.__name__ if isinstance(f, type) else type(f).__name__ for f in sys.meta_path])"
    done = python("-c", show, executable=environment, path=[make_fakes(tmp_path)])
    assert done.stdout == "['HfBitDistillHook', 'BuiltinImporter', 'FrozenImporter', 'PathFinder']\n"


def test_after_the_package_is_uninstalled(environment, monkeypatch, tmp_path):
    """Python starts as if it were not there."""
    hook = tmp_path / "folder with 'quotes'" / "hook.py"
    hook.parent.mkdir()
    shutil.copyfile(start_file.HOOK, hook)
    monkeypatch.setattr(start_file, "content", lambda before=start_file.content: before(hook))
    start_file.install()
    hook.unlink()
    code = "import transformers.modeling_utils as m; print(m.registered)"
    done = python("-c", code, executable=environment, path=[make_fakes(tmp_path / "fakes", None)])
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_a_file_of_another_installation_is_told(environment):
    file = start_file.install()
    file.write_text(file.read_text().replace(str(start_file.HOOK), "/gone/hook.py"))
    assert not start_file.is_current(file)


def test_a_folder_that_is_not_read_at_the_start(environment, monkeypatch, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    monkeypatch.setattr(start_file, "environment_folder", lambda: elsewhere)
    with pytest.raises(ValueError, match=r"does not run start-up files in .*elsewhere: nothing was installed"):
        start_file.install()
    assert list(elsewhere.iterdir()) == []


def test_a_folder_that_cannot_be_written(environment, monkeypatch):
    def refuse(path, text):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(start_file, "write_text", refuse)
    with pytest.raises(PermissionError, match=r"site-packages cannot be written\.$"):
        start_file.install()
    monkeypatch.setattr(start_file.site, "ENABLE_USER_SITE", True)
    with pytest.raises(PermissionError, match=r"cannot be written \(--user takes"):
        start_file.install()


def test_the_users_folder_in_a_virtual_environment(environment):
    with pytest.raises(ValueError, match="does not read the user's site-packages"):
        start_file.install(user=True)


def test_folders():
    assert start_file.environment_folder() == Path(sysconfig.get_path("purelib"))
    assert start_file.HOOK.is_file()
