import importlib
import pickle
import subprocess
import sys

import pytest

from hf_bitdistill.modules.former_modules import FORMER_MODULES


WITHIN = {
    "distillation.config": "training.config",
    "distillation.teacher": "training.teacher",
    "layers.bit_linear": "nn.bit_linear",
    "warm_start.config": "training.warm_start.config",
}


@pytest.mark.parametrize(("former", "name"), [*FORMER_MODULES.items(), *WITHIN.items()])
def test_a_former_name_is_the_module_itself(former, name):
    module = importlib.import_module(f"hf_bitdistill.{former}")

    assert module is importlib.import_module(f"hf_bitdistill.{name}")
    assert module.__name__ == module.__spec__.name == f"hf_bitdistill.{name}"


def test_a_pickle_of_then(tmp_path):
    """Its classes are named as they were; nothing of them was imported when it is read."""
    from hf_bitdistill import DistillationConfig
    from hf_bitdistill.nn import SubLN

    for value, former in (
        (DistillationConfig(output_dir=str(tmp_path), report_to=[], use_cpu=True), b"distillation.config"),
        (SubLN(4), b"layers.sub_norm"),
    ):
        now = type(value).__module__.removeprefix("hf_bitdistill.").encode()
        # Protocol 0 writes names as lines, whatever their length.
        then = pickle.dumps(value, protocol=0).replace(b"chf_bitdistill." + now, b"chf_bitdistill." + former)
        assert b"chf_bitdistill." + former in then and b"chf_bitdistill." + now not in then
        file = tmp_path / "pickle"
        file.write_bytes(then)
        code = "import pickle, sys; import hf_bitdistill; print(type(pickle.load(open(sys.argv[1], 'rb'))).__module__)"
        read = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True)
        assert read.stdout.strip() == type(value).__module__, read.stderr


def test_what_never_was_is_not_found():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("hf_bitdistill.layers.no_such_layer")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("hf_bitdistill.no_such_module")
