import importlib
import pickle
import sys

import pytest

import warm
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
    """Its classes are named as they were; the modules of a training were not imported when it is read."""
    from hf_bitdistill import DistillationConfig
    from hf_bitdistill.nn import SubLN

    values = {
        b"layers.sub_norm": SubLN(4),
        b"distillation.config": DistillationConfig(output_dir=str(tmp_path), report_to=[], use_cpu=True),
    }
    files = []
    for former, value in values.items():
        now = type(value).__module__.removeprefix("hf_bitdistill.").encode()
        # Protocol 0 writes names as lines, whatever their length.
        then = pickle.dumps(value, protocol=0).replace(b"chf_bitdistill." + now, b"chf_bitdistill." + former)
        assert b"chf_bitdistill." + former in then and b"chf_bitdistill." + now not in then
        files.append(tmp_path / former.decode())
        files[-1].write_bytes(then)
    code = "import pickle, sys; import hf_bitdistill\n"
    code += "for file in sys.argv[1:]: print(type(pickle.load(open(file, 'rb'))).__module__)"
    read = warm.run([sys.executable, "-c", code, *map(str, files)], ours=False)
    assert read.stdout.split() == [type(value).__module__ for value in values.values()], read.stderr


def test_what_never_was_is_not_found():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("hf_bitdistill.layers.no_such_layer")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("hf_bitdistill.no_such_module")
