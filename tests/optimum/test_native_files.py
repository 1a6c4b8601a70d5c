"""Native files: what is loaded from one is what its checkpoint holds, bit for bit, or it is not used."""

import json
import os
import shutil
import threading

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from stock import save_stock
from transformers import AutoModelForSequenceClassification

from architectures import random_tokens
from hf_bitdistill import BitNetConfig, apply_bitnet, pack
from hf_bitdistill.cli.main import main
from hf_bitdistill.files.atomic import lock_folder, name_aside
from hf_bitdistill.files.model_folder import NATIVE_FOLDER
from hf_bitdistill.hub.source import model_files, other_files
from hf_bitdistill.runtime import LowRank, NotAStudentError, describe, native_format, native_key, native_writing
from hf_bitdistill.runtime.spec_json import decode_spec, encode_spec
from optimum.bitnet import BitNetModelForCausalLM, BitNetModelForSequenceClassification
from students import VARIANTS, make_student


pytestmark = pytest.mark.usefixtures("native_decoder")


@pytest.fixture(autouse=True)
def always_written(monkeypatch, tmp_path):
    """Files of tiny models, and of those that were saved just now. The cache is the test's own."""
    monkeypatch.setattr(native_writing, "_WORTH_BYTES", 0)
    monkeypatch.setattr(native_key, "_SETTLED_SECONDS", -10)
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf_home"))


@pytest.fixture
def saved(tmp_path):
    """Saves a student, packed unless told otherwise, and returns `(online student, folder)`."""

    def save(model_type="llama", packed=True, **kwargs):
        student = make_student(model_type, **kwargs)
        folder = tmp_path / model_type
        (pack(student, table_bits=32) if packed else student).save_pretrained(folder)
        return student, folder

    return save


def load(folder, **options):
    return BitNetModelForCausalLM.from_pretrained(folder, **options)


def is_ready(model):
    """Whether it was loaded from a native file: nothing else was opened."""
    return model._opened_student is None


def native_files(folder):
    place = folder / NATIVE_FOLDER
    return sorted(place.glob("*.native")) if place.is_dir() else []


def logits(model):
    with torch.no_grad():
        return model(random_tokens(2, 9)).logits


def test_of_several_processes_on_a_machine_the_first_writes(saved, monkeypatch):
    _, folder = saved()
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, count in (("1", 0), ("0", 1)):
        monkeypatch.setenv("LOCAL_RANK", rank)
        load(folder)
        assert len(native_files(folder)) == count


def check_both(folder, **options):
    """The second load is from a file, and all it says is what the first says."""
    first, second = load(folder, **options), load(folder, **options)
    assert not is_ready(first) and is_ready(second)
    assert torch.equal(logits(first), logits(second))
    assert first.config.to_dict() == second.config.to_dict()
    assert first.decoder.weight_bytes == second.decoder.weight_bytes
    assert first.decoder.bytes_per_token == second.decoder.bytes_per_token
    tables = [dict(model.named_parameters()) for model in (first, second)]
    assert tables[0].keys() == tables[1].keys()
    assert all(torch.equal(table, tables[1][name]) for name, table in tables[0].items())
    return first, second


# ---- The same, bit for bit ----


@pytest.mark.parametrize(
    ("model_type", "options", "stored", "bits"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True}, {}, 8),
        ("llama", {"tie_word_embeddings": False}, {"table_bits": 8}, 4),
        ("gemma3_text", {"sliding_window": 4, "sliding_window_pattern": 2}, {"table_bits": 4}, None),
        ("phi3", {"partial_rotary_factor": 0.5}, {"dtype": "float16"}, 16),
        ("qwen3_moe", {"norm_topk_prob": False, "mlp_only_layers": [1]}, {"table_bits": 32}, 32),
        ("mixtral", {}, {"table_bits": 8}, None),
        ("bitnet", {}, {}, None),
    ],
)
def test_packed_students(tmp_path, model_type, options, stored, bits):
    pack(make_student(model_type, **options), **stored).save_pretrained(tmp_path / "packed")
    first, second = check_both(tmp_path / "packed", head_bits=bits)
    assert second.num_parameters() == first.num_parameters()
    second.save_pretrained(tmp_path / "again")
    saved = [load_file(tmp_path / name / "model.safetensors") for name in ("packed", "again")]
    assert saved[0].keys() == saved[1].keys() and all(torch.equal(saved[0][name], saved[1][name]) for name in saved[0])


@pytest.mark.parametrize("granularity", [{"weight_granularity": "row"}, {"weight_granularity": "group"}])
def test_scales_and_layers_in_full_precision(saved, granularity):
    kept = ["model.layers.0.mlp.down_proj"]
    _, folder = saved("llama", options={**granularity, "modules_to_not_convert": kept}, hidden_size=64)
    check_both(folder, head_bits=8)


@pytest.mark.parametrize("kind", ["bitlinear", "offline", "online"])
def test_formats_of_transformers(tmp_path, kind):
    save_stock(tmp_path / "stock", kind)
    check_both(tmp_path / "stock", export=True)
    with pytest.raises(NotAStudentError, match="export=True"):
        load(tmp_path / "stock")


def test_a_student_in_training_has_none(saved):
    _, folder = saved(packed=False)
    load(folder, export=True)
    assert not is_ready(load(folder, export=True)) and native_files(folder) == []
    with pytest.raises(NotAStudentError, match="pack it first"):
        native_writing.make_native_file(folder)


def test_a_classifier(tmp_path, tiny_llama_config):
    torch.manual_seed(0)
    tiny_llama_config.num_labels = 3
    model = AutoModelForSequenceClassification.from_config(tiny_llama_config)
    pack(apply_bitnet(model, BitNetConfig())).save_pretrained(tmp_path)
    first, second = (BitNetModelForSequenceClassification.from_pretrained(tmp_path) for _ in range(2))
    assert not is_ready(first) and is_ready(second)
    assert torch.equal(first(random_tokens(2, 7)).logits, second(random_tokens(2, 7)).logits)


def test_adapters(saved):
    _, folder = saved("qwen3")
    first, second = check_both(folder)
    rows = first.decoder.spec.heads * first.decoder.spec.head_dim
    a, b = torch.randn(2, first.config.hidden_size), torch.randn(2, rows)
    adapter = {"model.layers.0.self_attn.q_proj": LowRank(a, b)}
    tokens, zeros = torch.tensor([3, 4, 5]), torch.zeros(3, dtype=torch.int64)
    plain, *adapted = (
        decoder.forward(decoder.new_cache(1), tokens, zeros, torch.arange(3))
        for decoder in (first.decoder, first.decoder.adapted(adapter), second.decoder.adapted(adapter))
    )
    assert torch.equal(*adapted) and not torch.equal(plain, adapted[0])


@pytest.mark.parametrize(("model_type", "options"), VARIANTS[1::4], ids=lambda value: str(value)[:30])
def test_descriptions(model_type, options):
    spec = describe(make_student(model_type, **options))
    content = json.loads(json.dumps(encode_spec(spec)))
    again = decode_spec(content)
    assert again.layers == spec.layers and again.final_norm == spec.final_norm
    assert encode_spec(again) == encode_spec(spec)
    for ours, theirs in zip(again.ropes, spec.ropes, strict=True):
        assert torch.equal(ours.inv_freq, theirs.inv_freq) and ours.inv_freq.dtype == torch.float32


# ---- Another checkpoint, another question ----


def rewrite(folder, **kwargs):
    """Other weights in the same place: the same names, shapes and number of bytes."""
    file = folder / "model.safetensors"
    before, tensors = file.stat(), load_file(file)
    tensors = {name: tensor.flip(0) if "embed" in name else tensor for name, tensor in tensors.items()}
    return file, before, tensors


def test_a_checkpoint_that_changed(saved):
    _, folder = saved()
    first, second = check_both(folder)
    file, before, tensors = rewrite(folder)
    save_file(tensors, file, metadata={"format": "pt"})
    content = file.read_bytes()
    changed = load(folder)
    assert not is_ready(changed) and not torch.equal(logits(changed), logits(first))
    assert is_ready(load(folder)) and torch.equal(logits(load(folder)), logits(changed))
    with pytest.raises(ValueError, match=r"model\.safetensors was changed"):
        second.save_pretrained(folder.parent / "elsewhere")

    # In place, with the old size and the old time of the last change.
    before = file.stat()
    values = bytearray(content)
    values[-8:] = values[-16:-8]
    with open(file, "r+b") as stream:
        stream.write(values)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert not is_ready(load(folder))


def test_a_copy_is_told_by_its_contents(saved):
    _, folder = saved()
    first = load(folder)
    copied = folder.parent / "copied"
    shutil.copytree(folder, copied)
    (file,) = native_files(copied)
    stamp = native_format.NativeFile(file).stamp
    second = load(copied)
    assert is_ready(second) and torch.equal(logits(first), logits(second))
    assert native_format.NativeFile(file).stamp == native_key.states_of([str(copied / "model.safetensors")]) != stamp
    digest = native_key.digest_of_file
    native_key.digest_of_file = None  # not read any more
    try:
        assert is_ready(load(copied))
    finally:
        native_key.digest_of_file = digest

    # A native file beside another checkpoint of the same shape.
    other = folder.parent / "other"
    pack(make_student(seed=7), table_bits=32).save_pretrained(other)
    shutil.copytree(folder / ".cache", other / ".cache")
    found = load(other)
    assert not is_ready(found) and not torch.equal(logits(found), logits(first))


def test_states_that_are_too_young_are_compared_again(saved, monkeypatch):
    monkeypatch.setattr(native_key, "_SETTLED_SECONDS", 60)
    _, folder = saved()
    load(folder)
    (file,) = native_files(folder)
    assert native_format.NativeFile(file).stamp is None
    assert is_ready(load(folder)) and native_format.NativeFile(file).stamp is None
    monkeypatch.setattr(native_key, "_SETTLED_SECONDS", -10)
    assert is_ready(load(folder)) and native_format.NativeFile(file).stamp is not None


def test_other_options_and_another_config(saved):
    _, folder = saved()
    first, _ = check_both(folder, head_bits=8)
    assert not is_ready(load(folder, head_bits=4)) and is_ready(load(folder, head_bits=4))
    assert is_ready(load(folder, head_bits=8, kv_dtype="float32", num_threads=1))
    assert len(native_files(folder)) == 2
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] *= 2
    (folder / "config.json").write_text(json.dumps(config))
    changed = load(folder, head_bits=8)
    assert not is_ready(changed) and not torch.equal(logits(changed), logits(first))
    for options in ({"head_bits": 5}, {"kv_dtype": "int3"}, {"num_threads": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            load(folder, **options)


def test_another_version_has_a_file_of_its_own(saved, monkeypatch):
    _, folder = saved()
    load(folder)
    monkeypatch.setattr("hf_bitdistill.__version__", "99.0")
    assert not is_ready(load(folder)) and is_ready(load(folder)) and len(native_files(folder)) == 2
    # One that was not read for long goes when another is written.
    old = next(
        file for file in native_files(folder) if native_format.NativeFile(file).index["key"]["versions"][0] != "99.0"
    )
    os.utime(old, (1, 1))
    monkeypatch.setattr("hf_bitdistill.__version__", "99.1")
    load(folder)
    assert len(native_files(folder)) == 2 and old not in native_files(folder)


def test_it_can_be_switched_off(saved, monkeypatch):
    _, folder = saved()
    load(folder, native_file=False)
    assert native_files(folder) == []
    load(folder)
    assert not is_ready(load(folder, native_file=False))
    monkeypatch.setenv(native_key.SWITCH, "0")
    assert not is_ready(load(folder))
    with pytest.raises(ValueError, match="HF_BITDISTILL_NATIVE_FILES=0 switches native files off"):
        native_writing.make_native_file(folder)


def test_small_checkpoints_have_none(saved, monkeypatch):
    monkeypatch.setattr(native_writing, "_WORTH_BYTES", 64 << 20)
    _, folder = saved()
    load(folder)
    assert native_files(folder) == []
    # Unless one was asked for: that is kept up to date.
    file = native_writing.make_native_file(folder)
    assert is_ready(load(folder))
    os.truncate(file, 100)
    assert not is_ready(load(folder)) and is_ready(load(folder))


# ---- Damage ----


def _truncate(content, parts):
    return content[: len(content) // 2]


def _flip(part):
    def harm(content, parts):
        start, stop = parts[part]
        where = (start + stop) // 2
        return content[:where] + bytes([content[where] ^ 4]) + content[where + 1 :]

    return harm


@pytest.mark.parametrize(
    "harm",
    [
        _truncate,
        _flip("head"),
        _flip("size"),
        _flip("data"),
        _flip("index"),
        lambda content, parts: b"",
        lambda content, parts: content[:40],
        lambda content, parts: content + b"\0",
        lambda content, parts: b"x" * len(content),
    ],
    ids=["truncated", "head", "size", "data", "index", "empty", "half a head", "too long", "foreign"],
)
def test_damage_is_found_and_the_file_made_anew(saved, caplog, harm):
    _, folder = saved()
    first = load(folder)
    (file,) = native_files(folder)
    content, found = file.read_bytes(), native_format.NativeFile(file)
    data = (native_format._DATA_START, native_format._DATA_START + found.size)
    parts = {"head": (0, 8), "size": (16, 18), "data": data, "index": (data[1], found._stamp_at)}
    file.write_bytes(harm(content, parts))
    caplog.clear()
    second = load(folder)
    assert not is_ready(second) and torch.equal(logits(first), logits(second))
    (message,) = [r.getMessage() for r in caplog.records if "is made anew" in r.getMessage()]
    assert str(file) in message and "\n" not in message
    assert is_ready(load(folder)) and torch.equal(logits(load(folder)), logits(first))


def test_a_damaged_stamp_costs_a_comparison(saved):
    _, folder = saved()
    load(folder)
    (file,) = native_files(folder)
    content = bytearray(file.read_bytes())
    content[native_format.NativeFile(file)._stamp_at + 20] ^= 1
    file.write_bytes(content)
    assert native_format.NativeFile(file).stamp is None
    assert is_ready(load(folder))
    assert native_format.NativeFile(file).stamp is not None


def change(index, *path, value):
    for key in path[:-1]:
        index = index[key]
    index[path[-1]] = value


@pytest.mark.parametrize(
    "path",
    [
        ["spec"],
        ["spec", 6],
        ["spec", 7, 0],
        ["norms"],
        ["projections"],
        ["tables"],
        ["extras"],
        ["quantization"],
        ["needs_export"],
    ],
    ids=str,
)
@pytest.mark.parametrize("value", [None, -7, [[1 << 40, "float32", [4]]]], ids=str)
def test_an_index_that_nobody_wrote(saved_once, value, path):
    """With all digests right. It may be refused, never crash."""
    folder, expected = saved_once
    (file,) = native_files(folder)
    content, found = file.read_bytes(), native_format.NativeFile(file)
    index = found.index
    change(index, *path, value=value)
    data = content[native_format._DATA_START : native_format._DATA_START + found.size]
    writer = native_format.TensorWriter()
    writer.add(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    native_format.write(file, index, writer, found.stamp)
    assert torch.equal(logits(load(folder)), expected)


@pytest.fixture(scope="module")
def saved_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("once")
    pack(make_student("llama"), table_bits=32).save_pretrained(folder)
    model = load(folder, native_file=False)
    native_writing.make_native_file(folder)
    return folder, logits(model)


# ---- Places ----


def test_a_folder_that_cannot_be_written(saved, tmp_path):
    _, folder = saved()
    (folder / ".cache").write_text("no folder")
    check_both(folder)
    (file,) = (tmp_path / "hf_home" / "bitdistill" / "native").iterdir()
    assert (folder / ".cache").read_text() == "no folder"
    # What a checkpoint leaves behind in the cache goes when the next is written.
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    shutil.rmtree(folder)
    load(other)
    assert not file.exists() and len(list(file.parent.glob("*.native"))) == 1
    (tmp_path / "hf_home").rename(tmp_path / "moved")
    (tmp_path / "hf_home").write_text("")
    assert torch.equal(logits(load(other)), logits(load(other)))


def test_a_model_in_the_cache_of_the_hub(saved, tmp_path, monkeypatch):
    _, folder = saved()
    hub = tmp_path / "hub" / "models--me--student"
    snapshot = hub / "snapshots" / ("a" * 40)
    for path in (hub / "blobs", hub / "refs", snapshot):
        path.mkdir(parents=True)
    (hub / "refs" / "main").write_text("a" * 40)
    for file in folder.iterdir():
        shutil.copy(file, hub / "blobs" / file.name)
        (snapshot / file.name).symlink_to(f"../../blobs/{file.name}")
    names = sorted(os.listdir(snapshot))
    first, second = (load("me/student", cache_dir=tmp_path / "hub") for _ in range(2))
    assert is_ready(second) and torch.equal(logits(first), logits(second))
    assert is_ready(load(snapshot))  # by its path
    assert sorted(os.listdir(snapshot)) == names and sorted(os.listdir(hub)) == ["blobs", "refs", "snapshots"]
    assert len(list((tmp_path / "hf_home" / "bitdistill" / "native").iterdir())) == 1


def test_no_room(saved, monkeypatch):
    _, folder = saved()
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    first, second = load(folder), load(folder)
    assert not is_ready(second) and torch.equal(logits(first), logits(second)) and native_files(folder) == []
    with pytest.raises(OSError, match="of free space and about"):
        native_writing.make_native_file(folder)


def test_what_a_killed_writer_left_makes_room(saved, monkeypatch):
    _, folder = saved()
    place = native_writing.make_native_file(folder)
    left = name_aside(place)
    place.rename(left)
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000 if left.exists() else usage.free))
    assert native_writing.make_native_file(folder) == place
    assert not left.exists() and is_ready(load(folder))


def test_a_disk_that_fills_up_meanwhile(saved, monkeypatch):
    _, folder = saved()
    write = native_writing.write

    def fail(file, *args):
        write(file, *args)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(native_writing, "write", fail)
    load(folder)
    assert [file for file in folder.rglob("*") if "native" in file.name] == []
    monkeypatch.undo()


def test_several_at_once(saved):
    _, folder = saved()
    expected = logits(load(folder, native_file=False))
    found, errors = [], []

    def run():
        try:
            found.append(logits(load(folder)))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and len(found) == 4 and all(torch.equal(each, expected) for each in found)
    assert (
        is_ready(load(folder))
        and [file.name for file in (folder / NATIVE_FOLDER).iterdir() if ".tmp-" in file.name] == []
    )


def test_while_another_process_writes(saved, tmp_path):
    _, folder = saved()
    (folder / NATIVE_FOLDER).mkdir(parents=True)
    lock = lock_folder(folder / NATIVE_FOLDER)
    if lock is None:
        pytest.skip("there are no locks here")
    load(folder)
    assert native_files(folder) == [] and not (tmp_path / "hf_home").exists()
    os.close(lock)
    load(folder)
    assert len(native_files(folder)) == 1


# ---- A model's life ----


def test_deletion_saving_and_publishing(saved, tmp_path):
    student, folder = saved()
    first, second = check_both(folder)
    shutil.rmtree(folder / ".cache")
    assert torch.equal(logits(second), logits(first))  # nothing reads it any more
    load(folder)
    assert len(native_files(folder)) == 1
    assert not any(".cache" in name for name in (*model_files(folder), *other_files(folder, set())))
    # Another model takes the place.
    pack(student, table_bits=8).save_pretrained(folder)
    assert native_files(folder) == []
    second.decoder.forward(second.decoder.new_cache(1), torch.tensor([1]), torch.tensor([0]), torch.tensor([0]))


def test_pack_writes_it(saved, tmp_path, tiny_tokenizer, capsys):
    _, folder = saved(packed=False)
    tiny_tokenizer.save_pretrained(folder)
    out = tmp_path / "out"
    assert main(["pack", str(folder), str(out), "--head_bits", "8", "--native"]) == 0
    (file,) = native_files(out)
    assert str(file) in capsys.readouterr().out
    model = load(out)
    assert is_ready(model) and torch.equal(logits(model), logits(load(out, native_file=False)))
    assert (file.parent / ".gitignore").read_text() == "*\n"
