"""Hand-made attacks on both loaders: what is damaged, and what the refusal says."""

import json
import os
import shutil
import struct
import time
from pathlib import Path

import pytest
from mutator import INDEX, join_weights, split_weights
from transformers import AutoModelForCausalLM, GPTJConfig

from architectures import tiny_model
from hf_bitdistill import BitNetConfig, apply_bitnet
from hf_bitdistill.files.tensor_headers import CheckpointError
from optimum.bitnet import BitNetModelForCausalLM


SECONDS = 10
LOADERS = {
    "transformers": AutoModelForCausalLM.from_pretrained,
    "optimum": BitNetModelForCausalLM.from_pretrained,
}
both = pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)


@pytest.fixture
def shards(bases, tmp_path):
    return shutil.copytree(bases["shards"], tmp_path / "model")


@pytest.fixture
def mixture(bases, tmp_path):
    return shutil.copytree(bases["mixture"], tmp_path / "model")


def edit(file: Path, change) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def refused(load, folder, *fragments, error=CheckpointError, **options) -> None:
    start = time.monotonic()
    with pytest.raises(error) as caught:
        load(folder, **options)
    assert time.monotonic() - start < SECONDS
    message = str(caught.value)
    assert "\n" not in message
    for fragment in fragments:
        assert fragment in message, message


# ---- a config that claims too much ------------------------------------------------------------------------------


@both
def test_a_million_layers(shards, load):
    edit(shards / "config.json", lambda config: config.update(num_hidden_layers=10**6))
    refused(
        load, shards, "model-00001-of-00002.safetensors", "config.json", "num_hidden_layers", "1000000", "38 tensors"
    )


@both
def test_a_million_experts(mixture, load):
    edit(mixture / "config.json", lambda config: config.update(num_local_experts=10**6, num_experts=10**6))
    refused(load, mixture, "model.safetensors", "experts", "1000000")


@both
def test_as_many_experts_as_the_largest_dimension(mixture, load):
    """What the first look lets pass is counted when the layers are known."""
    file = mixture / "model.safetensors"
    header, data = split_weights(file.read_bytes())
    header["large"] = {"dtype": "U8", "shape": [500_000], "data_offsets": [len(data), len(data) + 500_000]}
    file.write_bytes(join_weights(header, data + bytes(500_000)))
    edit(mixture / "config.json", lambda config: config.update(num_local_experts=500_000, num_experts=500_000))
    refused(load, mixture, "model.safetensors", "3000000 projections of experts")


def test_a_full_precision_checkpoint(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    edit(tmp_path / "config.json", lambda config: config.update(num_hidden_layers=10**6))
    refused(LOADERS["transformers"], tmp_path, "num_hidden_layers", quantization_config=BitNetConfig())


def test_a_table_that_no_file_holds(tmp_path):
    """GPT-J makes its rotary angles for every position when it has been loaded."""
    config = GPTJConfig(vocab_size=96, n_positions=64, n_embd=48, n_layer=2, n_head=4, rotary_dim=4)
    apply_bitnet(AutoModelForCausalLM.from_config(config)).save_pretrained(tmp_path)
    AutoModelForCausalLM.from_pretrained(tmp_path)
    edit(tmp_path / "config.json", lambda config: config.update(n_positions=10**9))
    refused(LOADERS["transformers"], tmp_path, "model.safetensors", "embed_positions", "1000000000")


def _cache(folder: Path, name: str) -> Path:
    """Put a folder into the cache of the Hub, as a download leaves it; returns its snapshot."""
    root = Path(os.environ["HF_HOME"]) / "hub" / f"models--{name.replace('/', '--')}"
    shutil.rmtree(root, ignore_errors=True)
    snapshot, blobs = root / "snapshots" / ("0" * 40), root / "blobs"
    for part in (snapshot, blobs, root / "refs"):
        part.mkdir(parents=True)
    (root / "refs" / "main").write_text("0" * 40)
    for file in folder.iterdir():
        shutil.copy(file, blobs / file.name)
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    return snapshot


@both
def test_a_model_of_the_hub(shards, load):
    _cache(shards, "someone/whole")
    load("someone/whole")
    edit(shards / "config.json", lambda config: config.update(num_hidden_layers=10**6))
    _cache(shards, "someone/deep")
    refused(load, "someone/deep", "num_hidden_layers", "1000000")


@both
def test_a_model_of_the_hub_without_other_files(mixture, load):
    (mixture / "generation_config.json").unlink()
    _cache(mixture, "someone/bare")
    load("someone/bare")


def test_a_config_of_the_callers_own_is_no_claim_of_the_files(tmp_path, monkeypatch):
    """A config that was read from one folder and changed may belong to the weights of another."""
    few, many = tmp_path / "few", tmp_path / "many"
    tiny_model("llama").save_pretrained(few)
    monkeypatch.setattr("hf_bitdistill.modeling.preflight._FEW_LAYERS", 4)
    large = tiny_model("llama", num_hidden_layers=30)
    large.save_pretrained(many)
    config = type(large.config).from_pretrained(few)
    config.num_hidden_layers = 30
    config.name_or_path = str(few)
    model = AutoModelForCausalLM.from_pretrained(many, config=config, quantization_config=BitNetConfig())
    assert len(model.model.layers) == 30


@pytest.mark.parametrize("key, value", [("num_hidden_layers", 10**12), ("num_labels", 10**9)])
def test_what_a_config_class_would_make_a_list_of(shards, key, value):
    edit(shards / "config.json", lambda config: config.update({key: value}))
    refused(LOADERS["optimum"], shards, "config.json", key, str(value))


@both
@pytest.mark.parametrize(
    "key, value",
    [
        ("hidden_size", 10**9),
        ("vocab_size", -1),
        ("vocab_size", 97),
        ("intermediate_size", -3),
        ("head_dim", 1 << 23),
        ("rms_norm_eps", float("inf")),
        ("sliding_window", "x"),
        ("sliding_window", [1]),
        ("hidden_act", "nope"),
        ("num_hidden_layers", 3),
    ],
)
def test_sizes_that_mean_nothing(shards, load, key, value):
    edit(shards / "config.json", lambda config: config.update({key: value}))
    names = [] if key == "num_hidden_layers" else [key] if value != 97 and key != "head_dim" else []
    refused(load, shards, *names, error=ValueError)


@both
def test_more_experts_for_a_token_than_there_are(mixture, load):
    edit(mixture / "config.json", lambda config: config.update(num_experts_per_tok=7))
    refused(load, mixture, "config.json", "num_experts_per_tok=7", "4")


# ---- quantization_config ----------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize(
    "key, value",
    [
        ("quantization_mode", 3),
        ("quantization_mode", None),
        ("sub_norm", ["output"]),
        ("sub_norm_eps", "1e-6"),
        ("sub_norm_eps", float("nan")),
        ("weight_granularity", {}),
        ("group_size", 128.0),
        ("group_size", 10**400),
        ("activation_bits", 8.0),
        ("activation_bits", True),
        ("head_bits", "16"),
        ("modules_to_not_convert", "lm_head"),
        ("modules_to_not_convert", 5),
        ("modules_to_not_convert", [1]),
        ("modules_without_sub_norm", {"a": 1}),
        ("projections", ["a"]),
        ("projections", {"a": ["input"]}),
        ("projections", {}),
        ("self", 1),
        ("unheard_of", "x" * 10_000),
    ],
)
def test_options_of_a_wrong_type(shards, load, key, value):
    edit(shards / "config.json", lambda config: config["quantization_config"].update({key: value}))
    refused(load, shards, "BitNetConfig", key, error=ValueError)


@pytest.mark.parametrize("value", [[1], "bitdistill", 3, None, False])
def test_no_object_at_all(shards, value):
    edit(shards / "config.json", lambda config: config.update(quantization_config=value))
    refused(LOADERS["optimum"], shards, "config.json", "quantization_config", error=ValueError)


# ---- JSON -------------------------------------------------------------------------------------------------------

_BROKEN = {
    "empty": b"",
    "cut": b'{"model_type": "ll',
    "list": b"[]",
    "nested": b'{"a":' * 100_000,
    "latin": b'{"a": "\xff"}',
    "digits": b'{"a": ' + b"9" * 5000 + b"}",
}
broken = pytest.mark.parametrize("content", _BROKEN.values(), ids=_BROKEN)


@broken
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_json_of_the_native_loader(shards, name, content):
    (shards / name).write_bytes(content)
    refused(LOADERS["optimum"], shards, name)


@both
@broken
def test_json_of_an_index(shards, load, content):
    (shards / INDEX).write_bytes(content)
    refused(load, shards, INDEX)


@both
@pytest.mark.parametrize("key", ["weight_map", "metadata"])
@pytest.mark.parametrize("value", [None, [], 3, "x"])
def test_parts_of_an_index(shards, load, key, value):
    edit(shards / INDEX, lambda index: index.update({key: value}))
    refused(load, shards, INDEX, key)


@both
@pytest.mark.parametrize(
    "name", ["../other/x.safetensors", "a/../../x", "/etc/passwd", "..", "", 5, None, [], "x\0y", "x" * 300, "\ud800"]
)
def test_entries_that_lead_elsewhere(shards, load, name):
    edit(shards / INDEX, lambda index: index["weight_map"].update({"model.norm.weight": name}))
    refused(load, shards, INDEX, "model.norm.weight")


@both
def test_a_link_that_leads_elsewhere(shards, load, tmp_path):
    shard = shards / "model-00001-of-00002.safetensors"
    shutil.move(shard, tmp_path / shard.name)
    shard.symlink_to(tmp_path / shard.name)
    refused(load, shards, shard.name, "leads out of the folder", str(tmp_path / shard.name))


def test_a_subfolder(bases, tmp_path):
    """Of which transformers tells the quantizer nothing before it has built the model."""
    folder = shutil.copytree(bases["shards"], tmp_path / "model" / "part").parent
    AutoModelForCausalLM.from_pretrained(folder, subfolder="part")
    edit(
        folder / "part" / INDEX, lambda index: index["weight_map"].update({"model.norm.weight": "../../x.safetensors"})
    )
    refused(LOADERS["transformers"], folder, "x.safetensors", "outside the folder", subfolder="part")
    edit(folder / "part" / "config.json", lambda config: config.update(num_hidden_layers=10**6))
    refused(LOADERS["transformers"], folder, "num_hidden_layers", subfolder="part")


# ---- files that are none ----------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("kind", ["fifo", "folder", "device", "missing", "loop"])
def test_no_file_in_place_of_a_shard(shards, load, kind):
    shard = shards / "model-00002-of-00002.safetensors"
    shard.unlink()
    if kind == "fifo":
        os.mkfifo(shard)
    elif kind == "folder":
        shard.mkdir()
    elif kind == "device":
        shard.symlink_to("/dev/zero")
    elif kind == "loop":
        shard.symlink_to(shard.name)
    refused(load, shards, shard.name)


@both
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "generation_config.json"])
def test_a_fifo_in_place_of_another_file(bases, tmp_path, load, name):
    folder = shutil.copytree(bases["mixture"], tmp_path / "model")
    (folder / name).unlink()
    os.mkfifo(folder / name)
    start = time.monotonic()
    if name == "generation_config.json":
        load(folder)  # as if it were not there
    else:
        with pytest.raises((OSError, ValueError), match=name):
            load(folder)
    assert time.monotonic() - start < SECONDS


# ---- headers ----------------------------------------------------------------------------------------------------


def _entry(change):
    def damage(content: bytes) -> bytes:
        header, data = split_weights(content)
        change(header, header["model.norm.weight"])
        return join_weights(header, data)

    return damage


def _twice(content: bytes) -> bytes:
    header, data = split_weights(content)
    other = json.dumps(header["model.layers.0.input_layernorm.weight"])
    return join_weights(json.dumps(header)[:-1] + f', "model.norm.weight": {other}}}', data)


def _length(value: int):
    return lambda content: struct.pack("<Q", value) + content[8:]


HEADERS = {
    "length 0": _length(0),
    "length 2^31": _length(2**31),
    "length 2^63": _length(2**63),
    "length 2^64 - 1": _length(2**64 - 1),
    "too short for a length": lambda content: content[:5],
    "cut in the header": lambda content: content[:100],
    "cut in the data": lambda content: content[:-1],
    "bytes after the data": lambda content: content + b"\0",
    "no JSON": lambda content: content[:8] + b"}" + content[9:],
    "no UTF-8": lambda content: content[:10] + b"\xff" + content[11:],
    "nested": lambda content: join_weights('{"a":' * 50_000, split_weights(content)[1]),
    "a name twice": _twice,
    "an unknown dtype": _entry(lambda header, entry: entry.update(dtype="F7")),
    "a dtype of another size": _entry(lambda header, entry: entry.update(dtype="F64")),
    "a whole dtype": _entry(lambda header, entry: entry.update(dtype="I32")),
    "overlapping": _entry(
        lambda header, entry: entry.update(
            data_offsets=header["model.layers.0.input_layernorm.weight"]["data_offsets"]
        )
    ),
    "out of range": _entry(lambda header, entry: entry.update(data_offsets=[0, 2**40])),
    "reversed": _entry(lambda header, entry: entry.update(data_offsets=entry["data_offsets"][::-1])),
    "negative": _entry(lambda header, entry: entry.update(data_offsets=[-192, 0])),
    "a shape of 2^63": _entry(lambda header, entry: entry.update(shape=[2**63])),
    "a shape that overflows": _entry(lambda header, entry: entry.update(shape=[2**40, 2**40])),
    "another shape": _entry(lambda header, entry: entry.update(shape=entry["shape"][::-1] + [1])),
    "an empty tensor": _entry(lambda header, entry: header.update({"x": {**entry, "shape": [0, 10**12]}})),
    "another name": _entry(lambda header, entry: header.update(norm=header.pop("model.norm.weight"))),
}


@both
@pytest.mark.parametrize("damage", HEADERS.values(), ids=HEADERS)
def test_headers(mixture, load, damage):
    file = mixture / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    refused(load, mixture, "model.safetensors")
