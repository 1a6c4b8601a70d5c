"""Weights that are only read to be unpacked: a second mapping of their file, which does not stay."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from hf_bitdistill import pack
from hf_bitdistill.modeling import own_mapping
from hf_bitdistill.modeling.checkpoint import read_headers
from hf_bitdistill.modeling.conversions import LoadDenseWeight
from students import make_student


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    model = pack(make_student())
    model.save_pretrained(folder, max_shard_size="5KB")
    files = sorted(map(str, folder.glob("*.safetensors")))
    assert len(files) > 2
    return read_headers(model, files)


def loaded(header):
    with safe_open(header.file, framework="pt") as reader:
        return reader.get_tensor(header.key)


def test_the_same_bytes_in_other_memory(saved, monkeypatch):
    read, real = [], own_mapping.read_header
    monkeypatch.setattr(own_mapping, "read_header", lambda file: read.append(file) or real(file))
    mapping = own_mapping.OwnMapping(lambda: saved)
    codes = {name: header for name, header in saved.items() if header.dtype == "U8"}
    assert codes
    for name, header in codes.items():
        tensor = loaded(header)
        again = mapping.read(name, tensor)
        assert again.data_ptr() != tensor.data_ptr() and torch.equal(again, tensor)
    assert sorted(read) == sorted({header.file for header in codes.values()})


def test_what_is_no_whole_weight_of_a_file_is_taken_as_it_is(saved):
    mapping = own_mapping.OwnMapping(lambda: saved)
    name, header = next((name, header) for name, header in saved.items() if header.dtype == "U8")
    tensor = loaded(header)
    for key, other in (
        ("no.such", tensor),
        (name, tensor[:-1]),
        (name, tensor.to(torch.int8)),
        (name, tensor.to("meta")),
    ):
        assert mapping.read(key, other) is other
    assert own_mapping.OwnMapping(dict).read(name, tensor) is tensor


def test_one_operation_for_all_tensors():
    operation = LoadDenseWeight(own_mapping.OwnMapping(dict))
    assert copy.deepcopy(operation) is operation


_RESIDENT = """
import re, sys
import torch
from transformers import AutoModelForCausalLM
import hf_bitdistill
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
inside, kilobytes = False, 0
for line in open("/proc/self/smaps"):
    if re.match("[0-9a-f]+-", line):
        inside = line.rstrip().endswith("model.safetensors")
    elif inside and line.startswith("Rss:"):
        kilobytes += int(line.split()[1])
print(kilobytes * 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="what a process has in memory is told by Linux")
def test_the_file_does_not_stay_in_memory_beside_what_was_made_of_it(tmp_path):
    student = make_student(hidden_size=1024, intermediate_size=4096)
    pack(student, inplace=True).save_pretrained(tmp_path)
    size = (tmp_path / "model.safetensors").stat().st_size
    output = subprocess.run([sys.executable, "-c", _RESIDENT, tmp_path], capture_output=True, text=True, check=True)
    assert int(output.stdout.splitlines()[-1]) < size / 2
