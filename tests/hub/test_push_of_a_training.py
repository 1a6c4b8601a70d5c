"""`Trainer`'s own options for the Hub, over HTTP with the real client."""

import gc
import json
import logging
import random
import shutil
import time
from types import SimpleNamespace

import pytest
import torch
from hub_double import TOKEN, Fault
from huggingface_hub import HfApi, ModelCard, snapshot_download
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq

from hf_bitdistill import pack
from hf_bitdistill.cli.main import main
from hf_bitdistill.files.tensor_headers import CheckpointError
from hf_bitdistill.files.training_checkpoints import damage
from hf_bitdistill.hub.cards.base_model_id import base_model_id
from hf_bitdistill.hub.source import link_files, pack_folder
from hf_bitdistill.machine.whole_models import whole_models
from hf_bitdistill.training import DistillationConfig, DistillationTrainer, PretrainingConfig, ReliableTrainer
from students import make_student


ROWS = [{"input_ids": list(range(3, 12)), "attention_mask": [1] * 9, "labels": list(range(3, 12))}] * 8


@pytest.fixture(scope="module", autouse=True)
def quick_collection():
    """The trainer collects garbage at the end of every training: what was imported is not looked through each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def make_trainer(hub, tiny_tokenizer, tmp_path):
    def make(kind=DistillationTrainer, **options):
        student = options.pop("student", None) or make_student(vocab_size=384)
        arguments = {
            "output_dir": str(tmp_path / "run"), "use_cpu": True, "report_to": [], "disable_tqdm": True, "max_steps": 2,
            "per_device_train_batch_size": 2, "learning_rate": 1e-3, "push_to_hub": True, "hub_model_id": "owner/student",
            "save_strategy": "steps", "save_steps": 1, "attention_loss_weight": 0.0, **options,
        }  # fmt: skip
        config = DistillationConfig if kind is DistillationTrainer else PretrainingConfig
        teacher = {}
        if kind is DistillationTrainer:
            teacher = {"teacher_model": make_student(vocab_size=384), "teacher_processing_class": tiny_tokenizer}
        return kind(
            model=student, args=config(**arguments), train_dataset=ROWS, data_collator=DataCollatorForSeq2Seq(tiny_tokenizer),
            processing_class=tiny_tokenizer, **teacher,
        )  # fmt: skip

    return make


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(3, 15)[None]).logits


def load(**options):
    return AutoModelForCausalLM.from_pretrained("owner/student", **options)


def test_at_the_end(hub, make_trainer):
    trainer = make_trainer(hub_strategy="end", hub_private_repo=True)
    trainer.train()
    assert len(hub.history("owner/student")) == 1
    commit = trainer.push_to_hub(commit_message="done", tags="tiny")
    assert hub.history("owner/student")[0].oid == commit.oid and hub.history("owner/student")[0].message == "done"
    assert len(hub.history("owner/student")) == 2 and hub.repositories["owner/student"].private
    files = hub.files("owner/student")
    assert set(files) == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md",
        "training_log.json", "verification.json",
    }  # fmt: skip
    assert json.loads(files["training_log.json"])["global_step"] == 2
    card = ModelCard(files["README.md"].decode())
    assert "tiny" in card.data.tags and 'from_pretrained("owner/student")' in card.content
    assert torch.equal(logits(load()), logits(pack(trainer.model)))
    assert AutoTokenizer.from_pretrained("owner/student").vocab_size == 384
    # Where nothing changed there is nothing to commit.
    assert trainer.push_to_hub(tags="tiny").oid == commit.oid


def test_what_a_training_published_is_downloaded_and_verified(hub, make_trainer, monkeypatch):
    trainer = make_trainer(hub_strategy="end")
    trainer.train()
    create = HfApi.create_commit

    def harmed(self, repo_id, operations, **options):
        for operation in operations:
            if getattr(operation, "path_in_repo", "") == "config.json":
                with operation.as_file() as file:
                    text = file.read().decode().replace('"offline"', '"online"')
                operation.__init__("config.json", text.encode())
        return create(self, repo_id, operations, **options)

    monkeypatch.setattr(HfApi, "create_commit", harmed)
    with pytest.raises(CheckpointError, match=r"owner/student was published \(http.*is no packed student"):
        trainer.push_to_hub()
    with pytest.raises(CheckpointError, match="is no packed student"):
        trainer.push_to_hub(blocking=False).result()
    assert trainer.push_to_hub(check_download=False) is not None


@pytest.mark.parametrize("strategy", ["every_save", "checkpoint", "all_checkpoints"])
def test_while_it_trains(hub, make_trainer, strategy, tmp_path):
    trainer = make_trainer(hub_strategy=strategy, hub_always_push=True, save_total_limit=1)
    trainer.train()
    history = hub.history("owner/student")
    assert [commit.message for commit in history] == [
        "Training in progress, step 2", "Training in progress, step 1", "initial commit",
    ]  # fmt: skip
    for commit in history[:2]:
        found = load(revision=commit.oid)
        assert found.config.quantization_config.quantization_mode == "offline"
        assert ("training_args.bin" in " ".join(commit.files)) is False
    assert torch.equal(logits(load()), logits(pack(trainer.model)))
    places = {path.split("/")[0] for path in hub.files("owner/student") if "/" in path}
    expected = {
        "every_save": set(),
        "checkpoint": {"last-checkpoint"},
        "all_checkpoints": {"checkpoint-1", "checkpoint-2"},
    }
    assert places == expected[strategy]
    assert not list((tmp_path / "run").glob("_upload*"))
    if not places:
        assert not [path for path in hub.files("owner/student") if "optimizer" in path]
        return
    # Whoever resumes from it finds it whole, and ends where the run without an interruption ends.
    folder = snapshot_download("owner/student", local_dir=tmp_path / "download")
    for place in places:
        assert damage(tmp_path / "download" / place) is None, place
    if strategy == "all_checkpoints":
        again = make_trainer(output_dir=str(tmp_path / "again"), push_to_hub=False)
        again.train(f"{folder}/checkpoint-1")
        assert torch.equal(logits(again.model), logits(trainer.model))


def test_an_older_checkpoint_leaves_nothing_behind(hub, make_trainer):
    hub.create("owner/student")
    hub.put(
        "owner/student",
        {"last-checkpoint/rng_state_7.pth": b"1", "last-checkpoint/old/part.bin": b"2", "notes.md": b"3"},
    )
    make_trainer(hub_strategy="checkpoint", max_steps=1).train()
    files = hub.files("owner/student")
    assert "last-checkpoint/rng_state_7.pth" not in files and "last-checkpoint/old/part.bin" not in files
    assert "last-checkpoint/optimizer.pt" in files and "notes.md" in files


def test_the_trainable_form_and_a_branch(hub, make_trainer):
    trainer = make_trainer(hub_strategy="every_save", push_format="both", hub_revision="dev", max_steps=1)
    trainer.train()
    assert "config.json" not in hub.files("owner/student")
    online = load(subfolder="online", revision="dev")
    assert torch.equal(logits(online), logits(trainer.model)) and next(online.parameters()).requires_grad
    assert torch.equal(logits(load(revision="dev")), logits(pack(trainer.model)))
    trainer.push_to_hub(blocking=False).result(60)
    assert hub.history("owner/student", "dev")[0].message == "End of training"
    with pytest.raises(ValueError, match="push_format must be one of"):
        DistillationConfig(output_dir="x", push_format="int4")


def test_uploads_come_in_the_order_of_their_checkpoints(hub, make_trainer):
    trainer = make_trainer(hub_strategy="every_save", hub_always_push=True, max_steps=3)
    slow = iter([0.3, 0.1, 0.0])
    hub.before_commit = lambda: time.sleep(next(slow))
    trainer.train()
    steps = [commit.message[-1] for commit in hub.history("owner/student")][:-1]
    assert steps == ["3", "2", "1"]


def test_saving_pushes(hub, make_trainer):
    trainer = make_trainer(hub_strategy="end", save_strategy="no", max_steps=1)
    trainer.train()
    trainer.save_model()
    assert hub.history("owner/student")[0].message == "Model save"
    assert torch.equal(logits(load()), logits(pack(trainer.model)))


def test_an_upload_that_fails_does_not_end_the_training(hub, make_trainer, caplog):
    hub.faults.append(Fault("POST", "/commit/", times=4))
    trainer = make_trainer(hub_strategy="every_save", hub_always_push=True)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert trainer.state.global_step == 2
    assert "step 1: the upload failed (owner/student: the Hub answered 500" in caplog.text
    assert [commit.message for commit in hub.history("owner/student")][:-1] == ["Training in progress, step 2"]
    hub.faults.append(Fault("POST", "/commit/", times=4))
    with pytest.raises(ConnectionError, match="owner/student: the Hub answered 500"):
        trainer.push_to_hub()


def test_who_may_not_push_is_told_before_the_training(hub, make_trainer, monkeypatch):
    hub.create("owner/student")
    with pytest.raises(ValueError, match="is there already and public"):
        make_trainer(hub_private_repo=True)
    monkeypatch.setenv("HF_TOKEN", "hf_thisIsNoTokenOfAnybody")
    with pytest.raises(PermissionError, match="owner/student: the Hub does not know this token"):
        make_trainer()
    # A token among the arguments is used, and told to nobody.
    trainer = make_trainer(hub_token=TOKEN, hub_strategy="all_checkpoints", max_steps=1)
    trainer.train()
    trainer.push_to_hub()
    assert len(hub.history("owner/student")) == 3 and TOKEN.encode() not in hub.everything()


def test_without_a_teacher(hub, make_trainer):
    trainer = make_trainer(ReliableTrainer, hub_strategy="end", max_steps=1)
    trainer.train()
    trainer.push_to_hub()
    card = hub.files("owner/student")["README.md"].decode()
    assert "ore information needed" not in card.lower() and 'from_pretrained("owner/student")' in card
    assert torch.equal(logits(load()), logits(pack(trainer.model)))


def test_a_full_precision_student(hub, make_trainer, tiny_llama_config):
    model = AutoModelForCausalLM.from_config(tiny_llama_config)
    trainer = make_trainer(student=model, allow_full_precision_student=True, hub_strategy="every_save", max_steps=1)
    trainer.train()
    trainer.push_to_hub()
    assert torch.equal(logits(load()), logits(model))
    assert not [path for path in hub.files("owner/student") if path.endswith((".bin", ".pt", ".pth"))]


def test_what_is_packed_for_an_upload_is_not_partitioned():
    """ZeRO-3 would have all processes load it, and only one does."""
    from transformers.integrations import deepspeed

    class Config:
        def is_zero3(self):
            return True

    args = SimpleNamespace(hf_deepspeed_config=Config())
    deepspeed.set_hf_deepspeed_config(args.hf_deepspeed_config)
    try:
        with whole_models(args):
            assert not deepspeed.is_deepspeed_zero3_enabled()
        assert deepspeed.is_deepspeed_zero3_enabled()
    finally:
        deepspeed.unset_hf_deepspeed_config()


def test_the_command(hub, tiny_llama_config, tiny_tokenizer, tmp_path, capsys):
    """With the evaluation that comes after the training; the card names the base model that the folder's config does."""
    base, data, out = tmp_path / "base", tmp_path / "data", tmp_path / "out"
    AutoModelForCausalLM.from_config(tiny_llama_config).save_pretrained(base)
    tiny_tokenizer.save_pretrained(base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "_name_or_path": "org/base"}))
    data.mkdir()
    rows = "\n".join(json.dumps({"sentence": f"a film {number} .", "label": number % 2}) for number in range(8))
    for split in ("train", "validation"):
        (data / f"{split}.jsonl").write_text(rows)
    options = {
        "model_name_or_path": base, "teacher_model_name_or_path": base, "task": "sst2", "data_dir": data, "output_dir": out, "max_steps": 1,
        "attention_loss_weight": 0, "per_device_train_batch_size": 4, "push_to_hub": True, "hub_model_id": "student", "report_to": "none",
        "disable_tqdm": True, "use_cpu": True, "hub_strategy": "end",
    }  # fmt: skip
    assert main(["distill", *(str(part) for name, value in options.items() for part in (f"--{name}", value))]) == 0
    assert f"on the Hub: {hub.url}/owner/student/commit/" in capsys.readouterr().out
    files = hub.files("owner/student")
    assert json.loads(files["evaluation.json"])["n"] == 8 and "run_options.json" not in files
    card = ModelCard(files["README.md"].decode())
    assert card.data.base_model == "org/base" and "student of [org/base]" in card.content
    assert str(tmp_path).encode() not in hub.everything()
    # Whoever distils further from the student's folder is told of the same base model.
    assert base_model_id(out) == "org/base"


def test_packing_for_an_upload_takes_no_random_number(tmp_path):
    """A training that uploads its checkpoints is the one that does not."""
    make_student().save_pretrained(tmp_path / "student")
    before = torch.get_rng_state(), random.getstate(), torch.get_default_dtype(), torch.is_grad_enabled()
    pack_folder(tmp_path / "student", tmp_path / "packed")
    after = torch.get_rng_state(), random.getstate(), torch.get_default_dtype(), torch.is_grad_enabled()
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]


def test_what_is_uploaded_has_names_of_its_own(tmp_path):
    """Two folders with files of the same names: neither takes the other's place, nor writes into it."""
    scratch, linked = tmp_path / "scratch", []
    scratch.mkdir()
    for name in ("model", "checkpoint"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(name)
        linked.append(link_files({"config.json": tmp_path / name / "config.json", "README.md": b"card"}, scratch))
    assert [each["config.json"].read_text() for each in linked] == ["model", "checkpoint"]
    assert (tmp_path / "model" / "config.json").read_text() == "model" and linked[0]["README.md"] == b"card"
    shutil.rmtree(tmp_path / "checkpoint")
    assert linked[1]["config.json"].read_text() == "checkpoint"
    assert link_files(linked[1], scratch) == linked[1]
