"""GGUF files as packed students: what they compute is what the file means."""

import copy
import gc
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf_files import GgufModel, as_type, permuted, some_tokens, write_gguf
from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from hf_bitdistill.cli.main import main
from hf_bitdistill.export.gguf_vocabulary import read_vocabulary
from hf_bitdistill.files.tensor_headers import CheckpointError
from hf_bitdistill.importing import import_gguf
from hf_bitdistill.importing.gguf_config import config_of
from hf_bitdistill.importing.gguf_reading import GgufFile
from hf_bitdistill.importing.gguf_tokenizer import tokenizer_of
from hf_bitdistill.nn import TernaryLinear
from hf_bitdistill.verify import verify
from optimum.bitnet import BitNetModelForCausalLM


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def close(logits, expected):
    """The median difference, in units of the logits' spread."""
    return ((logits - expected).abs().median() / expected.std()).item()


@pytest.mark.parametrize(
    "arch, kind, scales, granularity, group",
    [
        ("llama", "TQ2_0", "tensor", "tensor", None),
        ("llama", "Q2_0-128", "block", "group", 128),
        ("qwen2", "Q2_0", "block", "group", 64),
        ("qwen3", "Q2_0-128", "block", "group", 128),
        ("qwen3", "TQ1_0", "block", "group", 128),
        ("bitnet", "TQ1_0", "row", "row", None),
        ("bitnet", "TQ2_0", "tensor", "tensor", None),
    ],
)
@torch.no_grad()
def test_known_answers(tmp_path, native_decoder, arch, kind, scales, granularity, group):
    source = GgufModel(arch, kind, scales)
    file = source.save(tmp_path / "model.gguf")
    found = import_gguf(file, tmp_path / "out", answers=False, table_bits=32)
    tokens = some_tokens()
    options = found.quantization
    assert (options.weight_granularity, options.scale_group_size) == (granularity, group)
    assert options.sub_norm == ("output" if arch == "bitnet" else "none") and not found.kept
    model = load(tmp_path / "out")
    # (Sums in another order tip over some roundings to integers, each of which is a hundredth of a layer's largest input.)
    expected = source.logits(tokens)
    assert close(model(tokens).logits, expected) < 0.05
    native = BitNetModelForCausalLM.from_pretrained(tmp_path / "out", head_bits=32, kv_dtype="float32")
    assert native.backend == "native" and close(native(tokens).logits, expected) < 0.05
    for module in model.modules():
        if isinstance(module, TernaryLinear):
            module.activation_bits = None
    assert close(model(tokens).logits, source.logits(tokens, None)) < 1e-5
    # The weights themselves: codes times scales are those of the file, to the last bit.
    for name in ("model.layers.1.self_attn.k_proj", "model.layers.0.mlp.down_proj"):
        layer = model.get_submodule(name)
        scale = layer.weight_scale
        if granularity == "group":
            scale = scale.repeat_interleave(group, 1)
        elif granularity == "row":
            scale = scale[:, None]
        assert torch.equal(layer.unpack(torch.float32) * scale, source.state[f"{name}.weight"])


@torch.no_grad()
def test_layers_of_other_types_stay_in_full_precision(tmp_path, capsys, caplog):
    kept = {"blk.0.attn_v": "Q8_0", "blk.1.ffn_down": "Q4_0", "blk.1.attn_q": "BF16"}
    source = GgufModel("llama", "TQ2_0", kept=kept, tied=True)
    # (The rows of a kept Q projection change places too.)
    number, data = source.tensors["blk.1.attn_q.weight"][1:]
    source.tensors["blk.1.attn_q.weight"] = ((256, 256), number, permuted(data, 4))
    source.save(tmp_path / "model.gguf")
    assert main(["import", "gguf", str(tmp_path / "model.gguf"), str(tmp_path / "out"), "--table_bits", "32"]) == 0
    told = capsys.readouterr().out
    assert "interrupted" not in caplog.text
    assert "model.layers.0.self_attn.v_proj (Q8_0)" in told and "model.layers.1.mlp.down_proj (Q4_0)" in told
    assert "No tokenizer was written" in told and "Rounding them to 8 bits moves the logits by 0.0" in told
    model = load(tmp_path / "out")
    assert len(model.config.quantization_config.modules_to_not_convert) == 3
    assert close(model(some_tokens()).logits, source.logits(some_tokens())) < 0.05
    assert verify(tmp_path / "out", answers=False).passed
    assert (tmp_path / "out" / "verification.json").is_file()
    assert main(["import", "gguf", str(tmp_path / "model.gguf"), str(tmp_path / "f"), "--float_activations"]) == 0
    model = load(tmp_path / "f")
    assert (
        model.config.quantization_config.activation_bits is None
        and model.lm_head.weight is model.get_input_embeddings().weight
    )
    assert close(model(some_tokens()).logits, source.logits(some_tokens(), None)) < 1e-5


@torch.no_grad()
def test_stored_tables(tmp_path):
    """The embedding is F16 in the file and the head Q8_0: 16 bits hold the first exactly, the second nearly."""
    source = GgufModel("qwen3", "Q2_0", "row")
    source.save(tmp_path / "model.gguf")
    import_gguf(tmp_path / "model.gguf", tmp_path / "16", activation_bits=None, answers=False)
    tensors = load_file(tmp_path / "16" / "model.safetensors")
    assert tensors["model.embed_tokens.weight"].dtype == torch.float16
    assert torch.equal(tensors["model.embed_tokens.weight"].float(), source.state["model.embed_tokens.weight"])
    assert tensors["model.norm.weight"].dtype == torch.float32
    for bits, tolerance in ((16, 1e-3), (8, 0.02), (4, 0.2)):
        folder = tmp_path / str(bits)
        if bits < 16:
            stored = {"table_bits": bits, "weight_bits": 2 if bits == 8 else 1.6, "dtype": "bfloat16"}
            import_gguf(tmp_path / "model.gguf", folder, None, answers=False, **stored)
        model = load(folder)
        assert model.config.quantization_config.weight_bits == (2 if bits == 8 else 1.6)
        assert close(model(some_tokens()).logits, source.logits(some_tokens(), None)) < tolerance


@pytest.mark.parametrize("arch", ["qwen2", "llama"])
def test_tokenizer_and_generation_settings(tmp_path, tiny_tokenizer, arch):
    extra = {"general.sampling.temp": 0.5, "general.sampling.top_k": 20, "tokenizer.ggml.eot_token_id": 5}
    GgufModel(arch, "TQ2_0", tokenizer=tiny_tokenizer, extra=extra).save(tmp_path / "model.gguf")
    assert import_gguf(tmp_path / "model.gguf", tmp_path / "out", answers=False).tokenizer_error is None
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in ("the little robot <s> waters", "  Größe, 12345 == ünïcode\n\n", "don't"):
        assert tokenizer(text)["input_ids"] == tiny_tokenizer(text)["input_ids"]
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False) == "hello"
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<s>", "</s>", "<pad>")
    generation = GenerationConfig.from_pretrained(tmp_path / "out")
    assert generation.eos_token_id == [2, 5] and (generation.temperature, generation.top_k) == (0.5, 20)


LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PRE_TOKENIZERS = {
    "smollm": [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "llama-bpe": [
        pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ],
}


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_text_is_split_as_the_file_says(tmp_path, tiny_tokenizer, pre):
    backend = Tokenizer.from_str(tiny_tokenizer.backend_tokenizer.to_str())
    backend.pre_tokenizer = pre_tokenizers.Sequence(PRE_TOKENIZERS[pre])
    extra = {"tokenizer.ggml.pre": pre}
    model = GgufModel("llama", "TQ2_0", tokenizer=tiny_tokenizer, extra=extra)
    # A token that no merges make: llama-bpe takes a piece whole if it is a token.
    model.metadata["tokenizer.ggml.tokens"][383] = "zq"
    vocabulary = json.loads(backend.to_str())
    vocabulary["model"]["vocab"] = {
        "zq" if index == 383 else token: index for token, index in vocabulary["model"]["vocab"].items()
    }
    vocabulary["model"]["merges"] = [
        m for m in vocabulary["model"]["merges"] if "".join(m) != backend.id_to_token(383)
    ]
    model.metadata["tokenizer.ggml.merges"] = [" ".join(merge) for merge in vocabulary["model"]["merges"]]
    vocabulary["model"]["ignore_merges"] = pre == "llama-bpe"
    expected = Tokenizer.from_str(json.dumps(vocabulary))
    model.save(tmp_path / "model.gguf")
    found = tokenizer_of(GgufFile(tmp_path / "model.gguf"))
    for text in ("zq", "room 1234, 5678 and a film", "don't\n\n  stop"):
        first = [1] if pre == "llama-bpe" else []  # llama.cpp's default
        assert found(text)["input_ids"] == first + expected.encode(text).ids
    assert (383 in found("zq")["input_ids"]) == (pre == "llama-bpe")


@pytest.mark.parametrize("begins, ends", [(True, False), (False, True), (True, True)])
def test_a_tokenizer_that_adds_tokens(tmp_path, tiny_tokenizer, begins, ends):
    extra = {"tokenizer.ggml.add_bos_token": begins, "tokenizer.ggml.add_eos_token": ends}
    GgufModel("llama", "TQ2_0", tokenizer=tiny_tokenizer, extra=extra).save(tmp_path / "model.gguf")
    import_gguf(tmp_path / "model.gguf", tmp_path / "out", answers=False)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    expected = [*[1] * begins, *tiny_tokenizer("a film")["input_ids"], *[tiny_tokenizer.eos_token_id] * ends]
    assert tokenizer("a film")["input_ids"] == expected


def test_a_tokenizer_that_is_not_understood(tmp_path, tiny_tokenizer):
    model = GgufModel("qwen3", "TQ2_0", tokenizer=tiny_tokenizer, extra={"tokenizer.ggml.pre": "poro-chat"})
    model.save(tmp_path / "model.gguf")
    found = import_gguf(tmp_path / "model.gguf", tmp_path / "out", answers=False)
    assert "tokenizer.ggml.pre='poro-chat'" in found.tokenizer_error
    assert not (tmp_path / "out" / "tokenizer.json").exists()
    found = import_gguf(tmp_path / "model.gguf", tmp_path / "out", answers=False, tokenizer=tiny_tokenizer)
    assert found.tokenizer_error is None and (tmp_path / "out" / "tokenizer.json").exists()


YARN = {
    "qwen3.rope.scaling.type": "yarn",
    "qwen3.rope.scaling.factor": 4.0,
    "qwen3.rope.scaling.original_context_length": 32,
}


@torch.no_grad()
def test_long_context(tmp_path):
    source = GgufModel("qwen3", "Q2_0-128", extra=YARN)
    source.save(tmp_path / "model.gguf")
    import_gguf(tmp_path / "model.gguf", tmp_path / "out", None, table_bits=32, answers=False)
    rope = {"rope_type": "yarn", "rope_theta": 5000.0, "factor": 4.0, "original_max_position_embeddings": 32}
    expected = source.logits(some_tokens(), None, rope_parameters=rope)
    logits = load(tmp_path / "out")(some_tokens()).logits
    assert close(logits, expected) < 1e-5 < close(logits, source.logits(some_tokens(), None))


@torch.no_grad()
def test_rotary_frequencies_of_llama_3(tmp_path):
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    source = GgufModel("llama", "TQ2_0", extra={"llama.rope.freq_base": 500000.0})
    plain = 500000.0 ** -(torch.arange(0, 64, 2) / 64).double()
    lengths = 2 * torch.pi / plain
    smooth = (8192 / lengths - 1) / 3
    factors = torch.where(lengths < 2048, 1.0, torch.where(lengths > 8192, 8.0, 1 / ((1 - smooth) / 8 + smooth)))
    source.tensors["rope_freqs.weight"] = ((32,), *as_type(factors, "F32"))
    source.save(tmp_path / "model.gguf")
    import_gguf(tmp_path / "model.gguf", tmp_path / "out", None, table_bits=32, answers=False)
    expected = source.logits(some_tokens(), None, rope_parameters=rope)
    assert close(load(tmp_path / "out")(some_tokens()).logits, expected) < 1e-5
    source.tensors["rope_freqs.weight"] = ((32,), *as_type(factors.sqrt(), "F32"))
    source.save(tmp_path / "model.gguf")
    with pytest.raises(CheckpointError, match=r"tensor 'rope_freqs.weight' is not that of Llama 3"):
        import_gguf(tmp_path / "model.gguf", tmp_path / "out")


@torch.no_grad()
def test_a_scale_of_its_own_multiplies(tmp_path):
    """Some writers keep the scale in a tensor beside codes whose blocks have the scale 1."""
    source = GgufModel("bitnet", "TQ2_0")
    name, module = "blk.0.ffn_up", "model.layers.0.mlp.up_proj.weight"
    source.tensors[f"{name}.scale"] = ((1,), *as_type(torch.tensor([3.0]), "F32"))
    source.state[module] = source.state[module] * 3
    source.save(tmp_path / "model.gguf")
    import_gguf(tmp_path / "model.gguf", tmp_path / "out", None, table_bits=32, answers=False)
    assert close(load(tmp_path / "out")(some_tokens()).logits, source.logits(some_tokens(), None)) < 1e-5


@pytest.mark.usefixtures("native_decoder")
@torch.no_grad()
def test_a_file_in_the_place_of_a_folder(tmp_path, caplog):
    source = GgufModel("qwen3", "Q2_0-128", "block")
    source.save(tmp_path / "model.gguf")
    model = BitNetModelForCausalLM.from_pretrained(tmp_path / "model.gguf", head_bits=32, kv_dtype="float32")
    assert model.backend == "native" and "rounded to 8 bits" in caplog.text
    assert close(model(some_tokens()).logits, source.logits(some_tokens())) < 0.05
    assert model.generate(some_tokens(), max_new_tokens=3, do_sample=False).shape == (2, 12)
    model.save_pretrained(tmp_path / "saved")
    again = BitNetModelForCausalLM.from_pretrained(tmp_path / "saved", head_bits=32, kv_dtype="float32")
    assert torch.equal(again(some_tokens()).logits, model(some_tokens()).logits)
    named = BitNetModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", head_bits=32, kv_dtype="float32")
    assert torch.equal(named(some_tokens()).logits, model(some_tokens()).logits)
    folder = Path(model._imported.folder)
    assert folder.is_dir()
    with pytest.raises(ValueError, match="bitdistill import gguf"):
        copy.deepcopy(model)  # whose folder would go with the original
    del model
    gc.collect()
    assert not folder.exists()
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none.gguf"):
        BitNetModelForCausalLM.from_pretrained(tmp_path / "none.gguf")


def _q2_0(*fields):
    """The bytes of a block of Q2_0 of 64, scale 1, that begins with these fields."""
    bits = sum(field << 2 * place for place, field in enumerate(fields))
    return np.frombuffer(struct.pack("<e", 1.0) + bits.to_bytes(16, "little"), np.uint8)


REFUSALS = [
    ("architecture 'qwen35' is not imported", {"general.architecture": "qwen35"}, {}),
    ("architecture 'bitnet-b1.58' is not imported", {"general.architecture": "bitnet-b1.58"}, {}),
    ("'prism.hadamard.version' declares weights in a rotated basis", {"prism.hadamard.version": 1}, {}),
    ("'quantize.rotation' declares", {"quantize.rotation": "quarot"}, {}),
    ("'x.transform', which says 'Hadamard', declares", {"x.transform": "block-Hadamard"}, {}),
    ("'x.steps', which says 'rotated', declares", {"x.steps": ["scaled", "rotated"]}, {}),
    ("is one of 3 files of a model", {"split.count": 3}, {}),
    ("llama.expert_count=8 asks for what is not understood", {"llama.expert_count": 8}, {}),
    ("llama.logit_scale=2.0 asks for what is not understood", {"llama.logit_scale": 2.0}, {}),
    ("rope.scaling.type='longrope'", {"llama.rope.scaling.type": "longrope"}, {}),
    ("rope.dimension_count is 32 and not 64", {"llama.rope.dimension_count": 32}, {}),
    ("block_count is 3, and the tensors", {"llama.block_count": 3}, {}),
    (r"'blk.0.attn_k.weight' has the shape \[128, 256\], expected \[64", {"llama.attention.head_count": 8}, {}),
    ("'blk.0.ffn_up.weight' is of type 142 \\(PQ2_0 of PrismML\\)", {}, {"blk.0.ffn_up.weight": (None, 142, None)}),
    ("'blk.0.ffn_up.weight' is of type 36 \\(I2_S", {}, {"blk.0.ffn_up.weight": (None, 36, None)}),
    ("'blk.0.ffn_up.weight' is of type 99 \\(unknown\\)", {}, {"blk.0.ffn_up.weight": (None, 99, None)}),
    ("no tensor for 'model.layers.1.mlp.up_proj.weight'", {}, {"blk.1.ffn_up.weight": None}),
    (
        "'blk.0.attn_sub_norm.weight' has no place",
        {},
        {"blk.0.attn_sub_norm.weight": ((256,), 0, np.ones(256, np.float32))},
    ),
    ("'blk.0.ssm_a.weight' has no place", {}, {"blk.0.ssm_a.weight": ((256,), 0, np.ones(256, np.float32))}),
    (
        "'output_norm.weight': a value is not finite",
        {},
        {"output_norm.weight": ((256,), 0, np.full(256, np.nan, np.float32))},
    ),
    (
        "'blk.0.ffn_up.weight' has weights of the fourth level",
        {},
        {"blk.0.ffn_up.weight": ((512, 256), 42, np.tile(_q2_0(2, 0, 3), (512, 4)))},
    ),
    (
        "'blk.0.ffn_up.weight' is constant: every weight is 0",
        {},
        {"blk.0.ffn_up.weight": ((512, 256), 42, np.tile(_q2_0(*[1] * 64), (512, 4)))},
    ),
]


@pytest.mark.parametrize("message, keys, tensors", REFUSALS, ids=[refusal[0][:40] for refusal in REFUSALS])
def test_what_is_not_understood_is_refused(tmp_path, message, keys, tensors):
    source = GgufModel("llama", "TQ2_0", extra=keys)
    for name, entry in tensors.items():
        if entry is None:
            del source.tensors[name]
        else:
            before = source.tensors.get(name)
            source.tensors[name] = tuple(new if new is not None else before[i] for i, new in enumerate(entry))
    source.save(tmp_path / "model.gguf")
    with pytest.raises(CheckpointError, match=message) as error:
        import_gguf(tmp_path / "model.gguf", tmp_path / "out")
    assert str(tmp_path / "model.gguf") in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_words_of_rotation_in_free_text_declare_nothing(tmp_path):
    words = {
        "general.name": "Unrotated 1B",
        "general.description": "made without a Hadamard rotation",
        "general.tags": ["no-rotation"],
        "quantize.imatrix.file": "/models/rotated/imatrix.dat",
        "tokenizer.chat_template": "{# the rotation of roles #}",
    }
    file = GgufModel("llama", "TQ2_0", extra=words).save(tmp_path / "model.gguf")
    assert config_of(GgufFile(file)).model_type == "llama"


def test_known_bytes_of_q2_0(tmp_path):
    """Field 0 is -1, 1 is 0, 2 is +1; the first weight is in the lowest bits; a weight is its code times the scale."""
    source = GgufModel("llama", "Q2_0")
    source.tensors["blk.0.ffn_up.weight"] = ((512, 256), 42, np.tile(_q2_0(2, 0, 1, 2, 2), (512, 4)))
    source.save(tmp_path / "model.gguf")
    import_gguf(tmp_path / "model.gguf", tmp_path / "out", answers=False)
    layer = load(tmp_path / "out").model.layers[0].mlp.up_proj
    weight = layer.unpack(torch.float32)[3] * layer.weight_scale.view(-1, 1)[3 % layer.weight_scale.numel()]
    # (Fields that were not set are 0, which is -1.)
    assert weight[64:72].tolist() == [1, -1, 0, 1, 1, -1, -1, -1]


def test_blocks_too_small_to_tell(tmp_path):
    metadata, tensors = GgufModel("llama", "TQ2_0").metadata, GgufModel("llama", "TQ2_0").tensors
    tensors["blk.0.ffn_up.weight"] = ((1, 128), 42, np.zeros(36, np.uint8))
    write_gguf(tmp_path / "model.gguf", metadata, tensors)
    with pytest.raises(CheckpointError, match="so small that its bytes do not tell"):
        import_gguf(tmp_path / "model.gguf", tmp_path / "out")


def test_output_and_options(tmp_path, capsys):
    source = GgufModel("llama", "TQ2_0")
    source.save(tmp_path / "model.gguf")
    with pytest.raises(ValueError, match="table_bits=5"):
        import_gguf(tmp_path / "model.gguf", tmp_path / "out", table_bits=5)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "config.json").write_text("{}")
    for arguments, message in (
        ([tmp_path / "none.gguf", tmp_path / "out"], "there is no file"),
        ([tmp_path / "model.gguf", tmp_path / "model.gguf"], "is a file"),
        ([tmp_path / "model.gguf", tmp_path / "full"], "holds a model in full precision"),
        ([tmp_path / "full" / "config.json", tmp_path / "out"], "is no GGUF file"),
    ):
        assert main(["import", "gguf", *map(str, arguments)]) == 1
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and message in lines[0]
    assert main(["import", "ggml", "a", "b"]) == 1 and "there are gguf, transformers" in capsys.readouterr().err
    assert main(["import", "--help"]) == 0 and "transformers" in capsys.readouterr().out


def test_a_tokenizer_of_sentencepiece(tmp_path, shared_dir):
    folder = shared_dir / "models" / "stories260K"
    if not folder.is_dir():
        pytest.skip(f"needs {folder}")
    expected = AutoTokenizer.from_pretrained(folder)
    vocabulary = read_vocabulary(expected, 512)
    source = GgufModel("bitnet", "TQ2_0")
    source.metadata |= {
        "tokenizer.ggml.model": vocabulary.model,
        "tokenizer.ggml.pre": vocabulary.pre,
        "tokenizer.ggml.tokens": vocabulary.tokens,
        "tokenizer.ggml.scores": [float(score) for score in vocabulary.scores],
        "tokenizer.ggml.token_type": vocabulary.types,
        "tokenizer.ggml.add_bos_token": vocabulary.flags["add_bos_token"],
        **{f"tokenizer.ggml.{KEYS.get(name, name)}_token_id": index for name, index in vocabulary.ids.items()},
    }
    source.tensors["token_embd.weight"] = ((512, 256), *as_type(torch.zeros(512, 256), "F16"))
    source.save(tmp_path / "model.gguf")
    for said in (True, False):
        found = tokenizer_of(GgufFile(tmp_path / "model.gguf"))
        for text in ("Once upon a time, there was a little robot.", "  two  spaces\nand Größe"):
            assert found(text)["input_ids"] == expected(text)["input_ids"], said
        # llama.cpp's default of this kind.
        assert source.metadata.pop("tokenizer.ggml.add_bos_token", True)
        source.save(tmp_path / "model.gguf")


KEYS = {"unk": "unknown", "pad": "padding"}


def test_whole_tokens_outside_of_the_bytes(tmp_path, tiny_tokenizer):
    """As those of DeepSeek: `<｜User｜>` is one token, and no bytes."""
    model = GgufModel("qwen2", "TQ2_0", tokenizer=tiny_tokenizer, extra={"tokenizer.ggml.pre": "qwen2"})
    names = {381: "<｜User｜>", 382: "<｜end▁of▁sentence｜>", 383: "  "}
    for index, name in names.items():
        model.metadata["tokenizer.ggml.tokens"][index] = name
        model.metadata["tokenizer.ggml.token_type"][index] = 4 if index == 383 else 3
    merges = model.metadata["tokenizer.ggml.merges"]
    known = set(model.metadata["tokenizer.ggml.tokens"])
    model.metadata["tokenizer.ggml.merges"] = [merge for merge in merges if merge.replace(" ", "") in known]
    model.metadata["tokenizer.ggml.eos_token_id"] = 382
    model.metadata["tokenizer.chat_template"] = "{{ 1 }}"
    model.metadata["tokenizer.chat_template.tool_use"] = "{{ 2 }}"
    model.save(tmp_path / "model.gguf")
    found = tokenizer_of(GgufFile(tmp_path / "model.gguf"))
    ids = found("<｜User｜>a film<｜end▁of▁sentence｜>")["input_ids"]
    assert ids[0] == 381 and ids[-1] == 382 and found.eos_token == "<｜end▁of▁sentence｜>"
    assert found.decode(ids, skip_special_tokens=True) == "a film" and 383 in found("a  film")["input_ids"]
    assert found.chat_template == {"default": "{{ 1 }}", "tool_use": "{{ 2 }}"}
