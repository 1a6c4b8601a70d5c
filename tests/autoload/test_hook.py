"""The hook, in starts of Python of their own."""

import pytest
from fakes import make_fakes, python

from hf_bitdistill.autoload.programs import PATH_FOLDER


SHOW = "import transformers.modeling_utils as m; print(m.registered, m.__loader__.__class__.__name__, m.__spec__.loader is m.__loader__)"


def test_it_registers_when_the_module_is_whole(tmp_path):
    done = python("-c", SHOW, path=[PATH_FOLDER, make_fakes(tmp_path)])
    assert (done.stdout, done.stderr) == ("[True] SourceFileLoader True\n", "")


def test_nothing_is_imported_before(tmp_path):
    code = "import sys, transformers; print(sorted({'hf_bitdistill', 'torch', 'transformers.modeling_utils'} & set(sys.modules)))"
    done = python("-c", code, path=[PATH_FOLDER, make_fakes(tmp_path)])
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_programs_that_read_a_quantization_config_first(tmp_path):
    """As lm_eval does. The module that loads models imports the same one, and is not whole then."""
    code = "import sys, transformers.quantizers; print(sys.modules['transformers.modeling_utils'].registered)"
    done = python("-c", code, path=[PATH_FOLDER, make_fakes(tmp_path)])
    assert (done.stdout, done.stderr) == ("[True]\n", "")


NAMES = "import sys; from lm_eval.api.registry import names; print(sorted(names()), 'hf_bitdistill' in sys.modules)"


def test_lm_eval_knows_the_native_model_by_name(tmp_path):
    done = python("-c", NAMES, path=[PATH_FOLDER, make_fakes(tmp_path)])
    assert (done.stdout, done.stderr) == ("['bitnet', 'hf'] False\n", "")


def test_an_lm_eval_without_names(tmp_path):
    make_fakes(tmp_path)
    (tmp_path / "lm_eval/models/__init__.py").write_text("")
    (tmp_path / "lm_eval/api/registry.py").write_text("")
    done = python("-c", "import lm_eval.models", path=[PATH_FOLDER, tmp_path])
    assert done.returncode == 0 and done.stderr.startswith(
        "hf_bitdistill could not be registered in lm_eval (ImportError"
    )


def test_twice_is_once(tmp_path):
    """By the start-up file and by exec, and in a program that imports the package itself."""
    (tmp_path / "second").mkdir()
    hook = PATH_FOLDER.parent / "hook.py"
    (tmp_path / "second/sitecustomize.py").write_text(f"exec(open({str(hook)!r}).read())")
    path = [PATH_FOLDER, tmp_path / "second", make_fakes(tmp_path)]
    assert python("-c", SHOW, path=path).stdout == "[True] SourceFileLoader True\n"
    assert python("-c", NAMES, path=path).stdout == "['bitnet', 'hf'] False\n"
    assert python("-c", f"import hf_bitdistill; {SHOW}", path=path).stdout == "[True] SourceFileLoader True\n"


@pytest.mark.parametrize(
    "plugin, said",
    [
        (None, ""),  # uninstalled, or the Python of another environment
        ("import missing", "hf_bitdistill could not be registered (ModuleNotFoundError: No module named 'missing')\n"),
        ("1 / 0", "hf_bitdistill could not be registered (ZeroDivisionError: division by zero)\n"),
    ],
)
def test_a_plugin_that_is_broken_does_not_stop_the_program(tmp_path, plugin, said):
    done = python("-c", SHOW, path=[PATH_FOLDER, make_fakes(tmp_path, plugin)])
    assert (done.returncode, done.stdout, done.stderr) == (0, "[] SourceFileLoader True\n", said)


def test_a_module_that_fails_is_not_hidden(tmp_path):
    make_fakes(tmp_path)
    (tmp_path / "transformers/modeling_utils.py").write_text("import missing_backend")
    done = python("-c", SHOW, path=[PATH_FOLDER, tmp_path])
    assert done.returncode == 1 and "No module named 'missing_backend'" in done.stderr


def test_another_sitecustomize_still_runs(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("print('mine')")
    done = python(
        "-c", SHOW + "; import sitecustomize; print(sitecustomize.__file__)", path=[PATH_FOLDER, make_fakes(tmp_path)]
    )
    assert done.stdout == f"mine\n[True] SourceFileLoader True\n{tmp_path / 'sitecustomize.py'}\n"
