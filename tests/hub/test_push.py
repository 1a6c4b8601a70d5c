"""What a push leaves on the Hub, over HTTP with the real client."""

import json
import threading
from pathlib import Path

import pytest
import torch
from hub_double import OTHER_TOKEN, TOKEN, Fault
from huggingface_hub import ModelCard
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_bitdistill import pack, push_to_hub
from hf_bitdistill.cli.main import main
from hf_bitdistill.modeling.digests import METADATA_KEY
from hf_bitdistill.recipe import RecipeSettings
from hf_bitdistill.recipe.pushing import check_push, push_run
from hf_bitdistill.recipe.settings import RecipeError
from optimum.bitnet import BitNetModelForCausalLM
from students import make_student


NEVER = ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "run_options.json", "recipe.json")


@pytest.fixture
def folder(student, tiny_tokenizer, tmp_path):
    """The output folder of a training, with all that lies in one."""
    run = tmp_path / "run"
    student.save_pretrained(run)
    tiny_tokenizer.chat_template = "{{ messages[0].content }}"
    tiny_tokenizer.save_pretrained(run)
    for name in (*NEVER, "checkpoint-3/optimizer.pt", "checkpoint-3/model.safetensors", "notes.txt", ".env"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text(f"not for others: {TOKEN}")
    (run / "README.md").write_text(f'---\nlicense: mit\n---\nmade in {run}\n\nfrom_pretrained("run")\n')
    (run / "evaluation.json").write_text(
        json.dumps({"accuracy": 0.5, "file": str(run / "validation.jsonl"), "token": TOKEN})
    )
    state = {"global_step": 3, "epoch": 1.0, "log_history": [{"loss": 2.0, "step": 3}]}
    (run / "trainer_state.json").write_text(json.dumps({**state, "best_model_checkpoint": str(run / "checkpoint-3")}))
    (run / "report.html").write_text(f"<p>{run}/data.csv and 1/2 and https://example.org/tmp/x</p>")
    (run / "report").mkdir()
    (run / "report" / "losses.png").write_bytes(b"\x89PNG")
    return run


def logits(model):
    tokens = torch.arange(3, 15)[None]
    with torch.no_grad():
        return model.eval()(input_ids=tokens).logits


def load(repo_id, **options):
    return AutoModelForCausalLM.from_pretrained(repo_id, **options)


def test_a_folder_of_a_training(hub, folder, student):
    commit = push_to_hub(folder, "student", private=True)
    assert str(commit).startswith(hub.url) and len(hub.history("owner/student")) == 2
    assert hub.repositories["owner/student"].private
    files = hub.files("owner/student")
    assert set(files) == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
        "README.md", "evaluation.json", "training_log.json", "report.html", "report/losses.png", "verification.json",
    }  # fmt: skip
    assert json.loads(files["config.json"])["quantization_config"]["quantization_mode"] == "offline"
    expected = logits(pack(student))
    assert torch.equal(logits(load("owner/student")), expected)
    assert AutoTokenizer.from_pretrained("owner/student").chat_template == "{{ messages[0].content }}"
    # The texts, without what is of this machine alone.
    assert files["README.md"].decode() == '---\nlicense: mit\n---\nmade in run\n\nfrom_pretrained("owner/student")\n'
    assert json.loads(files["evaluation.json"]) == {"accuracy": 0.5, "file": "validation.jsonl", "token": "<SECRET>"}
    assert json.loads(files["training_log.json"]) == {
        "global_step": 3,
        "epoch": 1.0,
        "log_history": [{"loss": 2.0, "step": 3}],
    }
    assert files["report.html"] == b"<p>data.csv and 1/2 and https://example.org/tmp/x</p>"
    everything = hub.everything()
    assert TOKEN.encode() not in everything and str(folder).encode() not in everything


@pytest.mark.usefixtures("native_decoder")
def test_both_loaders_and_both_forms(hub, folder, student):
    push_to_hub(folder, "owner/student", push_format="both", commit_message="hello")
    assert hub.history("owner/student")[0].message == "hello"
    expected = logits(pack(student))
    assert torch.equal(logits(load("owner/student")), expected)
    native = BitNetModelForCausalLM.from_pretrained("owner/student", head_bits=32, kv_dtype="float32")
    assert torch.allclose(logits(native), expected, atol=1e-4)
    online = load("owner/student", subfolder="online")
    assert next(online.parameters()).requires_grad and torch.equal(logits(online), logits(student))
    exported = BitNetModelForCausalLM.from_pretrained(
        "owner/student", subfolder="online", export=True, head_bits=32, kv_dtype="float32"
    )
    # (The packed form has its norms and tables in 16 bits, the trainable one in 32.)
    assert torch.allclose(logits(exported), logits(native), atol=0.05)
    assert AutoTokenizer.from_pretrained("owner/student", subfolder="online").vocab_size == 384
    # The trainable form alone leaves the packed one where it is; the packed one alone leaves the trainable one.
    before = hub.files("owner/student")
    push_to_hub(folder, "owner/student", push_format="online")
    push_to_hub(folder, "owner/student")
    assert set(hub.files("owner/student")) == set(before)


def test_models_in_memory(hub, student, tiny_tokenizer, tmp_path):
    student.push_to_hub("student", commit_message="mine", private=True, tags=["tiny"])
    assert hub.history("owner/student")[0].message == "mine" and hub.repositories["owner/student"].private
    card = ModelCard(hub.files("owner/student")["README.md"].decode())
    assert {"bitnet", "ternary", "tiny"} <= set(card.data.tags) and card.data.library_name == "transformers"
    assert "More Information Needed" not in card.content and 'from_pretrained("owner/student")' in card.content
    assert student.config.quantization_config.quantization_mode == "online"
    (tmp_path / "weights").write_bytes(hub.files("owner/student")["model.safetensors"])
    with safe_open(tmp_path / "weights", "pt") as reader:
        assert METADATA_KEY in reader.metadata()
    expected = logits(pack(student))
    assert torch.equal(logits(load("owner/student")), expected)
    pack(student).push_to_hub("of-a-temporary", tokenizer=tiny_tokenizer)
    assert torch.equal(logits(load("owner/of-a-temporary")), expected)
    assert "tokenizer.json" in hub.files("owner/of-a-temporary")
    with pytest.raises(ValueError, match="trainable weights are not there"):
        pack(student).push_to_hub("owner/never", push_format="online")
    assert "owner/never" not in hub.repositories


@pytest.mark.usefixtures("native_decoder")
def test_the_native_model(hub, student, tiny_tokenizer, tmp_path):
    pack(student).save_pretrained(tmp_path / "packed")
    tiny_tokenizer.save_pretrained(tmp_path / "packed")
    model = BitNetModelForCausalLM.from_pretrained(tmp_path / "packed")
    commit = model.push_to_hub("student", commit_message="native", private=True)
    assert commit.oid == hub.history("owner/student")[0].oid and hub.history("owner/student")[0].message == "native"
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= set(hub.files("owner/student"))
    assert torch.equal(logits(BitNetModelForCausalLM.from_pretrained("owner/student")), logits(model))
    assert b"import hf_bitdistill" in hub.files("owner/student")["config.json"]
    model.save_pretrained(tmp_path / "again", push_to_hub=True, repo_id="owner/again")
    assert torch.equal(logits(load("owner/again")), logits(pack(student)))


def test_save_pretrained_pushes_what_push_to_hub_does(hub, student, tmp_path):
    student.save_pretrained(tmp_path / "mine", push_to_hub=True, commit_message="saved")
    assert (
        json.loads((tmp_path / "mine" / "config.json").read_text())["quantization_config"]["quantization_mode"]
        == "online"
    )
    assert hub.history("owner/mine")[0].message == "saved"
    assert json.loads(hub.files("owner/mine")["config.json"])["quantization_config"]["quantization_mode"] == "offline"
    with pytest.raises(ValueError, match="state_dict"):
        student.save_pretrained(tmp_path / "m", push_to_hub=True, state_dict=student.state_dict())


def test_what_is_no_student_is_refused(hub, tiny_llama_config, tmp_path):
    AutoModelForCausalLM.from_config(tiny_llama_config).save_pretrained(tmp_path / "full")
    for folder, message in ((tmp_path / "full", "no ternary student"), (tmp_path / "nowhere", "no folder")):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            push_to_hub(folder, "owner/student")
    with pytest.raises(ValueError, match="push_format must be one of packed, online, both"):
        push_to_hub(tmp_path / "full", "owner/student", push_format="fp8")
    assert not hub.requests


def test_a_secret_in_a_file_that_is_not_rewritten(hub, student, tmp_path):
    pack(student).save_pretrained(tmp_path / "packed")
    (tmp_path / "packed" / "chat_template.jinja").write_text(f"{{# {TOKEN} #}}")
    with pytest.raises(ValueError, match=r"chat_template\.jinja holds the token") as error:
        push_to_hub(tmp_path / "packed", "owner/student")
    assert TOKEN not in str(error.value) and TOKEN.encode() not in hub.everything()


def test_older_weights_go_in_the_same_commit(hub, folder):
    hub.create("owner/student")
    old = {
        "model-00001-of-00002.safetensors": b"1", "model-00002-of-00002.safetensors": b"2", "model.safetensors.index.json": b"{}",
        "pytorch_model.bin": b"3", "adapter_config.json": b"{}", "training_args.bin": b"4", "student-q8.gguf": b"5",
        "online/pytorch_model.bin": b"6", "notes.md": b"7", "sub/model-00001-of-00002.safetensors": b"8",
    }  # fmt: skip
    hub.put("owner/student", old)
    push_to_hub(folder, "owner/student")
    kept = {"student-q8.gguf", "online/pytorch_model.bin", "notes.md", "sub/model-00001-of-00002.safetensors"}
    assert set(hub.files("owner/student")) & set(old) == kept
    assert len(hub.history("owner/student")) == 3  # the initial one, the old files, ours
    push_to_hub(folder, "owner/student", push_format="both")
    assert set(hub.files("owner/student")) & set(old) == kept - {"online/pytorch_model.bin"}


def test_shards(hub, student, tmp_path):
    packed = pack(student)
    packed.save_pretrained(tmp_path / "packed", max_shard_size="20KB")
    (tmp_path / "packed" / "pytorch_model.bin").write_bytes(b"old")
    push_to_hub(tmp_path / "packed", "owner/student")
    names = set(hub.files("owner/student"))
    assert "model.safetensors.index.json" in names and "model-00001-of-00002.safetensors" in str(
        sorted(names)
    ).replace("3", "2")
    assert "pytorch_model.bin" not in names
    assert torch.equal(logits(load("owner/student")), logits(packed))
    packed.push_to_hub("owner/student")
    assert not [name for name in hub.files("owner/student") if "-of-" in name or "index" in name]


def test_a_save_that_was_killed_is_pushed_under_the_usual_names(hub, student, tmp_path):
    packed = pack(student)
    packed.save_pretrained(tmp_path / "packed")
    (tmp_path / "packed" / "_model.tmp-1").mkdir()
    (tmp_path / "packed" / "model.safetensors").rename(tmp_path / "packed" / "_model.tmp-1" / "model.safetensors")
    config = json.loads((tmp_path / "packed" / "config.json").read_text())
    config["transformers_weights"] = "_model.tmp-1/model.safetensors"
    (tmp_path / "packed" / "config.json").write_text(json.dumps(config))
    push_to_hub(tmp_path / "packed", "owner/student")
    assert not [name for name in hub.files("owner/student") if "tmp-" in name]
    assert torch.equal(logits(load("owner/student")), logits(packed))


def test_revisions(hub, folder, student):
    push_to_hub(folder, "owner/student")
    with torch.no_grad():
        student.model.layers[0].mlp.down_proj.weight.neg_()
    student.push_to_hub("owner/student", revision="dev")
    assert not torch.equal(logits(load("owner/student")), logits(load("owner/student", revision="dev")))
    assert torch.equal(logits(load("owner/student", revision="dev")), logits(pack(student)))
    # The card and the tokenizer of the repository stay, where the model brings none.
    assert hub.files("owner/student", "dev")["README.md"] == hub.files("owner/student")["README.md"]
    assert hub.files("owner/student", "dev")["tokenizer.json"] == hub.files("owner/student")["tokenizer.json"]


def test_a_pull_request(hub, student):
    hub.create("owner/student")
    head = hub.put("owner/student", {"pytorch_model.bin": b"old", "README.md": b"---\n---\ntheirs"})
    commit = student.push_to_hub("owner/student", create_pr=True, token=OTHER_TOKEN)
    assert commit.pr_revision == "refs/pr/1" and hub.repositories["owner/student"].branches["main"] == head
    files = hub.files("owner/student", "refs/pr/1")
    assert "pytorch_model.bin" not in files and files["README.md"] == b"---\n---\ntheirs"
    assert torch.equal(logits(load("owner/student", revision=commit.oid)), logits(pack(student)))


def test_who_may_push(hub, folder, monkeypatch):
    hub.create("owner/public")
    for token, repo_id, message in (
        (OTHER_TOKEN, "owner/public", "may not do that"),
        (OTHER_TOKEN, "owner/new", "may not do that"),
        ("hf_thisIsNoTokenOfAnybody", "owner/new", "does not know this token"),
        (False, "owner/new", "the Hub asks who you are: log in with `hf auth login`"),
        (TOKEN, "not a name/at all/", "cannot be the name of a repository"),
    ):
        with pytest.raises((OSError, ValueError), match=message) as error:
            push_to_hub(folder, repo_id, token=token)
        assert "\n" not in str(error.value) and "hf_" not in str(error.value).replace("HF_TOKEN", "")
    with pytest.raises(ValueError, match="is there already and public"):
        push_to_hub(folder, "owner/public", private=True)
    assert "owner/new" not in hub.repositories and len(hub.history("owner/public")) == 1
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(PermissionError, match="log in with"):
        push_to_hub(folder, "owner/public")


@pytest.mark.parametrize(
    "fault",
    [
        Fault("PUT", "/lfs/"),
        Fault("PUT", "/lfs/", status=None),
        Fault("POST", "/commit/", times=2),
        Fault("POST", "/commit/", done=True),
        Fault("POST", "/preupload/", status=None),
        Fault("GET", "/api/models/owner/student", skip=1, status=503),
    ],
    ids=["lfs", "lfs-cut", "commit", "commit-answer-lost", "preupload-cut", "info"],
)
def test_a_fault_in_the_middle(hub, student, fault, monkeypatch):
    hub.create("owner/student")
    hub.put("owner/student", {"pytorch_model.bin": b"old"})
    hub.faults.append(fault)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client's own waits too
    student.push_to_hub("owner/student")
    assert not fault.times
    assert "pytorch_model.bin" not in hub.files("owner/student") and len(hub.history("owner/student")) == 3
    assert torch.equal(logits(load("owner/student")), logits(pack(student)))


def test_a_hub_that_stays_away(hub, student, monkeypatch):
    hub.create("owner/student")
    before = hub.put("owner/student", {"model.safetensors": b"old"})
    hub.faults.append(Fault("POST", "/commit/", times=100))
    with pytest.raises(ConnectionError, match="owner/student: the Hub answered 500") as error:
        student.push_to_hub("owner/student")
    assert "\n" not in str(error.value) and hub.repositories["owner/student"].branches["main"] == before
    assert hub.faults[0].times == 100 - 4
    # What was uploaded already is not uploaded again.
    hub.faults.clear()
    hub.requests.clear()
    student.push_to_hub("owner/student")
    assert not [path for method, path in hub.requests if method == "PUT"]


def test_two_pushes_at_once(hub, tmp_path):
    """Each is whole; the later one stands. Without the look at the parent the files of both would be mixed."""
    models = [pack(make_student(vocab_size=384, num_hidden_layers=layers)) for layers in (1, 2)]
    models[0].save_pretrained(tmp_path / "0")
    models[1].save_pretrained(tmp_path / "1", max_shard_size="20KB")
    hub.create("owner/student")
    both = threading.Barrier(2)
    arrived = iter([both, both])
    hub.before_commit = lambda: (barrier := next(arrived, None)) and barrier.wait(30)
    errors = []

    def run(place):
        try:
            push_to_hub(tmp_path / str(place), "owner/student", commit_message=str(place))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(place,)) for place in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    history = hub.history("owner/student")
    assert {commit.message for commit in history[:2]} == {"0", "1"} and len(history) == 3
    for commit in history[:2]:
        model = models[int(commit.message)]
        found = load("owner/student", revision=commit.oid)
        assert found.config.num_hidden_layers == model.config.num_hidden_layers
        assert torch.equal(logits(found), logits(model))
        weights = {name for name in commit.files if name.endswith(".safetensors")}
        assert (weights == {"model.safetensors"}) == (commit.message == "0")


def test_the_command(hub, folder, capsys, monkeypatch):
    assert main(["push", str(folder), "student", "--private", "--push_format", "both", "--revision", "v1"]) == 0
    said = capsys.readouterr()
    assert "packed and online" in said.out and f"{hub.url}/owner/student/commit/" in said.out
    assert hub.repositories["owner/student"].private and "online/model.safetensors" in hub.files("owner/student", "v1")
    assert TOKEN.encode() not in hub.everything() and TOKEN not in said.out + said.err
    monkeypatch.delenv("HF_TOKEN")
    assert main(["push", str(folder), "student"]) == 1
    said = capsys.readouterr()
    assert "log in with" in said.err and len(said.err.splitlines()) == 1  # at once: nothing was loaded
    assert main(["push", str(folder), "owner/student", "--token", OTHER_TOKEN]) == 1
    assert OTHER_TOKEN not in capsys.readouterr().err


def test_the_upload_of_a_run(hub, folder, student, tmp_path):
    """The folder of `bitdistill run`."""
    run = tmp_path / "out"
    pack(student).save_pretrained(run / "packed")
    (run / "packed" / "README.md").write_text('from_pretrained("packed")')
    student.save_pretrained(run / "stages" / "distill" / "model")
    paths = {"student": str(run / "stages" / "distill" / "model"), "packed": str(run / "packed")}
    (run / "result.json").write_text(json.dumps({"paths": paths, "settings": {"dataset": "/tmp/data/rows.csv"}}))
    (run / "recipe.json").write_text("{}")
    push_to_hub(run, "owner/student", push_format="both")
    files = hub.files("owner/student")
    assert json.loads(files["result.json"]) == {
        "paths": {"student": "model", "packed": "packed"},
        "settings": {"dataset": "rows.csv"},
    }
    assert files["README.md"] == b'from_pretrained("owner/student")' and "recipe.json" not in files
    assert torch.equal(logits(load("owner/student")), logits(pack(student)))
    assert torch.equal(logits(load("owner/student", subfolder="online")), logits(student))
    assert Path(paths["student"]).is_dir()


def test_the_end_of_a_run_of_the_recipe(hub, student, tmp_path, monkeypatch):
    run, said = tmp_path / "out", []
    pack(student).save_pretrained(run / "packed")
    settings = RecipeSettings(push_to="student", push_private=True)
    check_push(settings)
    push_run(run, settings, said.append)
    assert hub.repositories["owner/student"].private and f"{hub.url}/owner/student/commit/" in said[0]
    push_run(run, RecipeSettings(), said.append)
    assert len(hub.history("owner/student")) == 2 and len(said) == 1
    monkeypatch.setenv("HF_TOKEN", "hf_thisIsNoTokenOfAnybody")
    with pytest.raises(PermissionError, match="does not know this token"):
        check_push(settings)
    with pytest.raises(
        RecipeError, match=r"the run is done.*does not know this token.*push .*/out student --private$"
    ):
        push_run(run, settings, said.append)
    assert main(["run", "--model", "m", "--dataset", "d", "--output_dir", str(tmp_path / "no"), "--push_to", "x"]) == 1
    assert not (tmp_path / "no").exists()
    with pytest.raises(RecipeError, match="push_format must be one of packed, online, both"):
        RecipeSettings(push_format="int4")


def test_each_form_has_its_tokenizer(hub, student, tiny_tokenizer, tmp_path):
    student.save_pretrained(tmp_path / "run")
    tiny_tokenizer.save_pretrained(tmp_path / "run")
    student.name_or_path = student.config.name_or_path = str(tmp_path / "run")
    push_to_hub(student, "owner/forms")
    push_to_hub(student, "owner/forms", push_format="online")
    files = set(hub.files("owner/forms"))
    assert {"tokenizer.json", "online/tokenizer.json", "online/model.safetensors"} <= files
