"""A packed student is told from one that was changed, damaged, mixed up, or does not load."""

import importlib
import json
import shutil
import types

import pytest
import torch
from safetensors.torch import load_file, save_file

import warm
from architectures import tiny_config
from hf_bitdistill import apply_bitnet, pack
from hf_bitdistill.cli.main import main
from hf_bitdistill.files.tensor_headers import CheckpointError
from hf_bitdistill.modeling.digests import add_digests
from hf_bitdistill.modeling.model_heads import auto_class
from hf_bitdistill.verify import REFERENCE_FILE, save_packed, verify, verify_online, write_reference
from hf_bitdistill.verify.reference import Answer, deviation, read_reference
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


@pytest.fixture
def classifier(tmp_path):
    torch.manual_seed(0)
    config = tiny_config("llama", num_labels=3)
    student = apply_bitnet(auto_class("sequence_classification").from_config(config)).eval()
    save_packed(pack(student), tmp_path / "classifier")
    return tmp_path / "classifier"


def edit_json(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


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


@pytest.mark.parametrize("digests", [True, False])
@pytest.mark.parametrize("projection", ["self_attn.q_proj", "mlp.up_proj"])
def test_layers_that_changed_places(copy, warm_worker, projection, digests):
    """Two of one shape, and nothing else: each is sound by itself, and with new digests all of the file is."""
    file = copy / "model.safetensors"
    values = load_file(file)
    for part in ("weight", "weight_scale"):
        first, second = (f"model.layers.{number}.{projection}.{part}" for number in (0, 1))
        values[first], values[second] = values[second], values[first]
    save_file(values, file, metadata={"format": "pt"})
    if digests:
        add_digests([file], json.loads((copy / "config.json").read_text())["quantization_config"])
    found = verify(copy)
    assert statuses(found)["digests"] is (True if digests else None) and statuses(found)["codes and scales"]
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


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("kind", ["copy", "classifier"])
def test_one_that_does_not_load(kind, known, request, warm_worker):
    """Of either head, and also where no answers were kept."""
    folder = request.getfixturevalue(kind)
    edit_json(
        folder / "config.json",
        intermediate_size=json.loads((folder / "config.json").read_text())["intermediate_size"] + 4,
    )
    if not known:
        (folder / REFERENCE_FILE).unlink()
    problems = verify(folder).problems()
    assert len(problems) == 2 and all("does not load" in problem for problem in problems)
    assert main(["verify", str(folder)]) == 1


def test_a_classifier(classifier, warm_worker):
    found = verify(classifier)
    assert found.passed and all(statuses(found).values())
    change(classifier, **{"score.weight": lambda weight: weight.flip(0).contiguous()})
    found = verify(classifier)
    assert statuses(found)["answers, transformers"] is False and "answers otherwise" in found.problems()[0]


def test_without_a_reference(copy, warm_worker, capsys):
    (copy / REFERENCE_FILE).unlink()
    found = verify(copy)
    assert found.passed and found.untold() == ["answers"]
    assert statuses(found)["loading, transformers"] and statuses(found)["loading, native"]
    assert main(["verify", str(copy)]) == 0
    out = capsys.readouterr().out
    assert (
        "? answers: nothing is stored to compare with" in " ".join(out.split())
        and "verified (not told: answers)" in out
    )
    (copy / REFERENCE_FILE).write_text("{}")
    found = verify(copy)
    assert "verification.json is damaged" in found.problems()[0] and statuses(found)["loading, native"]


@pytest.mark.parametrize("content", ["{}", "[]", "{", '{"answers": []}', '{"answers": [{"prompt": [1]}]}'])
def test_a_damaged_reference(tmp_path, content):
    (tmp_path / REFERENCE_FILE).write_text(content)
    with pytest.raises(ValueError, match=r"verification.json is damaged"):
        read_reference(tmp_path / REFERENCE_FILE)


def test_logits_that_are_not_finite(copy, warm_worker):
    (copy / REFERENCE_FILE).unlink()
    change(copy, **{"model.norm.weight": lambda weight: weight * float("nan")})
    found = verify(copy)
    assert statuses(found)["loading, transformers"] is False and "not finite" in found.problems()[0]


def test_a_loader_that_crashes_does_not_hide_the_other(copy, monkeypatch):
    """Each has a process of its own."""

    def run(command, **options):
        if "transformers" in command:
            return types.SimpleNamespace(returncode=-11, stdout="", stderr="a line\nSegmentation fault\n")
        return warm.run(command, **options)

    module = importlib.import_module("hf_bitdistill.verify.verify")
    monkeypatch.setattr(module, "subprocess", types.SimpleNamespace(run=run))
    found = verify(copy)
    assert statuses(found)["answers, native"] is True
    (problem,) = found.problems()
    assert problem.startswith("answers, transformers: ") and "ended with status -11 Segmentation fault" in problem


def test_answers_of_another_machine_are_compared_less_strictly(copy, warm_worker):
    """Sums of floats come in another order there; older versions kept no conditions."""
    expected = json.loads((copy / REFERENCE_FILE).read_text())
    assert "computed alike" in next(check.found for check in verify(copy).checks if "transformers" in check.name)
    for values in expected["answers"]:
        values["logits"] = [
            [logit + 0.1 * spread for logit in row]
            for row, spread in zip(values["logits"], values["spread"], strict=True)
        ]
    (copy / REFERENCE_FILE).write_text(json.dumps(expected))
    found = verify(copy)
    assert statuses(found)["answers, transformers"] is False and statuses(found)["answers, native"] is True
    for conditions in ({**expected["conditions"], "processor": "another"}, None):
        kept = {name: value for name, value in expected.items() if name != "conditions"}
        (copy / REFERENCE_FILE).write_text(json.dumps(kept | ({"conditions": conditions} if conditions else {})))
        found = verify(copy)
        assert found.passed and not any("computed alike" in check.found for check in found.checks)


@pytest.mark.parametrize("bits", [16, 8])
def test_what_loading_computes_anew_is_no_difference(tmp_path, warm_worker, bits):
    """Gemma scales its embeddings by a number that no file holds: a model in 16 bits has it rounded, one that is loaded has not."""
    save_packed(pack(make_student("gemma2"), dtype="bfloat16", table_bits=bits), tmp_path)
    found = verify(tmp_path)
    assert found.passed
    check = next(check for check in found.checks if check.name == "answers, transformers")
    assert ("computed alike" in check.found) == (bits == 16)


def test_a_model_with_code_of_its_own_is_not_run(copy):
    edit_json(copy / "config.json", model_type="mine", auto_map={"AutoConfig": "mine.Config"})
    found = verify(copy)
    assert found.passed and found.untold() == ["loading"]


def test_a_trainable_one(tmp_path):
    make_student("llama").save_pretrained(tmp_path)
    assert statuses(verify_online(tmp_path)) == {"weight files": True, "digests": True}
    file = tmp_path / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    assert "is not the one that was saved" in verify_online(tmp_path).problems()[0]
    file.write_bytes(bytes(content[:100]))
    assert "damaged or not a safetensors file" in verify_online(tmp_path).problems()[0]


def test_what_is_no_packed_student(tmp_path, capsys):
    torch.manual_seed(0)
    make_student("llama").save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="is no packed student"):
        verify(tmp_path)
    pack(make_student("llama")).save_pretrained(tmp_path / "packed")
    with pytest.raises(CheckpointError, match="is no trainable student"):
        verify_online(tmp_path / "packed")
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
