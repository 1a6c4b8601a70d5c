"""A packed student is told from one that was changed, damaged, mixed up, or does not load."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_bitdistill import pack
from hf_bitdistill.cli.main import main
from hf_bitdistill.files.tensor_headers import CheckpointError
from hf_bitdistill.verify import REFERENCE_FILE, verify, write_reference
from hf_bitdistill.verify.reference import Answer, deviation
from students import make_student


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    torch.manual_seed(0)
    packed = pack(make_student("llama", options={"weight_granularity": "row"}))
    packed.save_pretrained(folder)
    write_reference(folder, packed)
    return folder


@pytest.fixture
def copy(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "copy")


def change(folder, **tensors):
    """Write the file with other tensors, without digests, as a tool would that knows nothing of them."""
    file = folder / "model.safetensors"
    values = load_file(file)
    for name, new in tensors.items():
        values[name] = new(values[name])
    save_file(values, file, metadata={"format": "pt"})


def statuses(found):
    return {check.name: check.passed for check in found.checks}


def test_a_sound_one(sound, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert main(["verify", str(sound), "--layers", "--output", str(page)]) == 0
    out = capsys.readouterr().out
    assert out.count("  ok ") == 5 and "verified" in out and "100 % of the first choices" in out
    assert "q_proj | " in out and "data:image/png" in page.read_text()
    assert not page.with_suffix(".png").exists()


def test_a_changed_byte(copy, capsys):
    file = copy / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(bytes(content))
    assert main(["verify", str(copy)]) == 1
    captured = capsys.readouterr()
    assert "FAILED digests" in captured.out and "is not the one that was saved" in captured.err


def test_layers_that_changed_places(copy, warm_worker):
    names = [f"model.layers.{number}.self_attn.q_proj.weight" for number in (0, 1)]
    file = copy / "model.safetensors"
    values = load_file(file)
    values[names[0]], values[names[1]] = values[names[1]], values[names[0]]
    for name in list(values):
        if name.endswith("embed_tokens.weight"):
            values[name] = values[name].flip(0).contiguous()
    save_file(values, file, metadata={"format": "pt"})
    found = verify(copy)
    assert statuses(found)["digests"] is None, "it was written without digests"
    assert statuses(found)["answers, transformers"] is False and not found.passed
    assert "answers otherwise" in found.problems()[0]


@pytest.mark.parametrize(
    "name,new,what",
    [
        ("model.layers.0.mlp.up_proj.weight", lambda codes: codes | 0b11, "code"),
        ("model.layers.0.mlp.up_proj.weight_scale", lambda scale: scale * float("nan"), "not finite"),
        ("model.layers.0.mlp.up_proj.weight_scale", lambda scale: -scale, "positive"),
    ],
)
def test_codes_and_scales(copy, name, new, what):
    change(copy, **{name: new})
    found = verify(copy)
    assert statuses(found)["codes and scales"] is False
    assert what in found.problems()[0] and name in found.problems()[0]


def test_commands_keep_what_it_answers(tmp_path, tiny_tokenizer, warm_worker):
    torch.manual_seed(0)
    student = make_student("llama", vocab_size=len(tiny_tokenizer))
    student.save_pretrained(tmp_path / "student")
    tiny_tokenizer.save_pretrained(tmp_path / "student")
    assert main(["pack", str(tmp_path / "student"), str(tmp_path / "packed"), "--head_bits", "8"]) == 0
    found = verify(tmp_path / "packed")
    assert found.passed and all(statuses(found).values())


def test_one_that_does_not_load(copy, warm_worker):
    config = json.loads((copy / "config.json").read_text())
    config["intermediate_size"] += 4
    (copy / "config.json").write_text(json.dumps(config))
    problems = verify(copy).problems()
    assert len(problems) == 2 and all("does not load" in problem for problem in problems)


def test_without_a_reference(copy, warm_worker):
    (copy / REFERENCE_FILE).unlink()
    found = verify(copy)
    assert found.passed and statuses(found)["answers, native"] is None
    (copy / REFERENCE_FILE).write_text("{}")
    assert "verification.json is damaged" in verify(copy).problems()[0]


def test_what_is_no_packed_student(tmp_path, capsys):
    torch.manual_seed(0)
    make_student("llama").save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="is no packed student"):
        verify(tmp_path)
    assert main(["verify", str(tmp_path / "none")]) == 1
    assert "no model folder" in capsys.readouterr().err


def test_deviation():
    expected = [Answer([1, 2], [2.0, 1.0], [[5, 6], [7, 8]], [[4.0, 3.0], [2.0, 1.0]])]
    found = [{"logits": [[4.0, 3.0], [2.3, 1.4]], "first": [5, 9]}]
    distance, same = deviation(expected, found)
    assert distance == pytest.approx((0 + ((0.09 + 0.16) / 2) ** 0.5) / 2) and same == 0.5


def test_what_the_native_class_writes_knows_its_answers(copy, tmp_path):
    from optimum.bitnet import BitNetModelForCausalLM
    from optimum.bitnet.export import export

    kept = (copy / REFERENCE_FILE).read_bytes()
    # The same weights: what was answered when they were packed.
    BitNetModelForCausalLM.from_pretrained(copy).save_pretrained(tmp_path / "same")
    assert (tmp_path / "same" / REFERENCE_FILE).read_bytes() == kept
    # Tables of 4 bits answer otherwise, and an export has no model in memory that could be asked.
    BitNetModelForCausalLM.from_pretrained(copy).save_pretrained(tmp_path / "rounded", table_bits=4)
    assert (tmp_path / "rounded" / REFERENCE_FILE).read_bytes() != kept
    torch.manual_seed(0)
    student = make_student("llama", options={"weight_granularity": "row"})
    student.save_pretrained(tmp_path / "online")
    export(str(tmp_path / "online"), tmp_path / "exported", dtype="float32", table_bits=32)
    assert (tmp_path / "exported" / REFERENCE_FILE).is_file() and verify(tmp_path / "exported", answers=False).passed


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_tables_are_no_ternary_layers(tmp_path, bits):
    """Embedding and head in 4 bits are bytes too, with scales that have a sign."""
    from hf_bitdistill.verify.packed_tensors import packed_layers

    torch.manual_seed(0)
    pack(make_student("llama"), table_bits=bits).save_pretrained(tmp_path)
    found = [layer.name for layer in packed_layers([str(tmp_path / "model.safetensors")])]
    assert len(found) == 14 and all("_proj" in name for name in found)
