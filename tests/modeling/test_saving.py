"""`save_pretrained` of students: as an attribute of the object, through copies, wrappers and Trainer."""

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from hf_bitdistill import apply_bitnet, pack
from hf_bitdistill.modeling.digests import METADATA_KEY
from hf_bitdistill.nn import BitLinear
from hf_bitdistill.quantization import PackedWeightError
from students import make_student


def has_digests(folder):
    with safe_open(folder / "model.safetensors", "pt") as reader:
        return METADATA_KEY in reader.metadata()


def is_of(folder, model):
    state = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    return has_digests(folder) and all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def changed(model):
    with torch.no_grad():
        model.model.norm.weight.add_(1)
    return model


@pytest.mark.parametrize("packed", [False, True])
def test_copies_save_themselves(tmp_path, packed):
    model = pack(make_student()) if packed else make_student()
    model.save_pretrained(tmp_path / "first")
    copies = {
        "deepcopy": copy.deepcopy(model),
        "pickle": pickle.loads(pickle.dumps(model)),
        "loaded": AutoModelForCausalLM.from_pretrained(tmp_path / "first"),
    }
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    copies["torch.save"] = torch.load(buffer, weights_only=False)
    expected = changed(copy.deepcopy(model))
    for name, other in copies.items():
        changed(other).save_pretrained(tmp_path / name)
        assert is_of(tmp_path / name, expected), name
    # The copies have tensors, and configs, of their own.
    model.save_pretrained(tmp_path / "again")
    assert is_of(tmp_path / "again", model) and not is_of(tmp_path / "deepcopy", model)


def test_a_student_that_nothing_else_holds_can_be_saved(tmp_path):
    student = make_student()
    pack(student).save_pretrained(tmp_path / "packed")
    assert is_of(tmp_path / "packed", pack(student))
    AutoModelForCausalLM.from_pretrained(tmp_path / "packed").save_pretrained(tmp_path / "again")
    assert is_of(tmp_path / "again", pack(student))
    save = copy.deepcopy(student).save_pretrained
    pickle.loads(pickle.dumps(save))(tmp_path / "online")
    assert is_of(tmp_path / "online", student)


def test_a_student_is_freed_at_once(tmp_path):
    student = make_student()
    student.save_pretrained(tmp_path)
    made = (
        lambda: pack(student),
        lambda: copy.deepcopy(student),
        lambda: AutoModelForCausalLM.from_pretrained(tmp_path),
    )
    gc.disable()
    try:
        for make in made:
            model = make()
            reference = weakref.ref(model)
            model.save_pretrained(tmp_path / "saved")
            del model
            assert reference() is None
    finally:
        gc.enable()


def test_what_another_process_writes(tmp_path):
    make_student().save_pretrained(tmp_path / "rank-1", is_main_process=False)
    assert not (tmp_path / "rank-1").exists() or not list((tmp_path / "rank-1").iterdir())


def test_trainer_and_wrappers(tmp_path):
    student = make_student()
    rows = [{"input_ids": [1, 2, 3, 4], "labels": [1, 2, 3, 4]}] * 4
    options = {"max_steps": 2, "save_steps": 1, "report_to": "none", "disable_tqdm": True, "use_cpu": True}
    trainer = Trainer(student, TrainingArguments(str(tmp_path / "run"), **options), train_dataset=rows)
    trainer.train()
    trainer.save_model()
    assert is_of(tmp_path / "run", student) and is_of(tmp_path / "run" / "checkpoint-2", student)
    assert has_digests(tmp_path / "run" / "checkpoint-1")
    assert not [path for path in tmp_path.rglob("*") if ".tmp" in path.name]
    compiled = torch.compile(student)
    compiled.save_pretrained(tmp_path / "compiled")
    nn.ModuleList([student])[0].save_pretrained(tmp_path / "held")
    assert is_of(tmp_path / "compiled", student) and is_of(tmp_path / "held", student)


def test_adapters_and_distributed_checkpoints_are_left_to_transformers(tmp_path, monkeypatch):
    student, calls = make_student(), []
    monkeypatch.setattr(type(student), "save_pretrained", lambda self, folder, *args, **kwargs: calls.append(folder))
    student.save_pretrained(tmp_path / "distributed", distributed_checkpoint=True)
    student._hf_peft_config_loaded = True
    student.save_pretrained(tmp_path / "adapter")
    assert calls == [tmp_path / "distributed", tmp_path / "adapter"]


def test_adapters_are_saved_as_before(tmp_path):
    peft = pytest.importorskip("peft")
    student = make_student()
    config = peft.LoraConfig(target_modules=["embed_tokens"], r=2)
    wrapped = peft.get_peft_model(copy.deepcopy(student), config)
    wrapped.save_pretrained(tmp_path / "wrapped")
    assert (tmp_path / "wrapped" / "adapter_model.safetensors").is_file()
    merged = wrapped.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    assert is_of(tmp_path / "merged", merged)
    try:
        student.add_adapter(config)
    except ValueError as error:  # transformers wants a newer peft
        pytest.skip(str(error))
    student.save_pretrained(tmp_path / "adapter")
    assert {file.name for file in (tmp_path / "adapter").iterdir()} >= {"adapter_model.safetensors"}
    assert not (tmp_path / "adapter" / "model.safetensors").exists()


def test_a_packed_model_does_not_replace_the_student_it_was_made_from(tmp_path):
    folder = tmp_path / "student"
    make_student().save_pretrained(folder)
    before = (folder / "model.safetensors").read_bytes()
    student = AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"student holds the trainable student.*elsewhere"):
        pack(student).save_pretrained(folder)
    assert (folder / "model.safetensors").read_bytes() == before
    changed(student).save_pretrained(folder)  # the student itself may
    assert is_of(folder, student)
    pack(student).save_pretrained(tmp_path / "packed")
    packed = AutoModelForCausalLM.from_pretrained(tmp_path / "packed")
    packed.save_pretrained(tmp_path / "packed")
    assert is_of(tmp_path / "packed", packed)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", "model.norm.weight", "model.layers.0.mlp.down_proj.rms_norm.weight"]
)
def test_pack_refuses_what_is_not_finite(name, value):
    student = make_student()
    dict(student.named_parameters())[name].data.view(-1)[3] = value
    for inplace in (False, True):
        with pytest.raises(PackedWeightError, match=rf"{name} is not finite"):
            pack(student, inplace=inplace)
    assert any(isinstance(module, BitLinear) for module in student.modules())


def test_surgery_gives_it_too(tmp_path):
    from architectures import tiny_model

    student = apply_bitnet(tiny_model("llama"))
    student.save_pretrained(tmp_path)
    assert is_of(tmp_path, student)


def test_the_config_says_how_the_model_is_loaded(tmp_path):
    """In the file, first of all, and nowhere else: a student that is loaded and saved elsewhere does not carry it twice."""
    student = make_student()
    for name, model in (("online", student), ("packed", pack(student))):
        model.save_pretrained(tmp_path / name)
        text = (tmp_path / name / "config.json").read_text()
        assert text.startswith('{\n  "_comment": "') and "import hf_bitdistill" in text.splitlines()[1]
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        assert not hasattr(loaded.config, "_comment")
        loaded.save_pretrained(tmp_path / "again")
        assert (tmp_path / "again" / "config.json").read_text().count("_comment") == 1
        del loaded.config.quantization_config
        loaded.config.save_pretrained(tmp_path / "plain")
        assert "_comment" not in (tmp_path / "plain" / "config.json").read_text()
