"""Copies and pickles of native models, and their floats."""

import copy
import pickle

import pytest
import torch
from stock import save_stock

from architectures import random_tokens
from hf_bitdistill import pack
from optimum.bitnet import BitNetModelForCausalLM
from students import assert_close, make_student


pytestmark = pytest.mark.usefixtures("native_decoder")


@torch.no_grad()
def test_copies_are_loaded_again(pair):
    _, native = pair()
    native.generation_config.max_new_tokens = 7
    native.config.note = "mine"
    expected = native(random_tokens()).logits
    for other in (copy.deepcopy(native), pickle.loads(pickle.dumps(native))):
        assert other.decoder is not native.decoder
        assert torch.equal(other(random_tokens()).logits, expected)  # with its head_bits and kv_dtype
        assert (other.generation_config.max_new_tokens, other.config.note) == (7, "mine")
        assert other.generation_config is not native.generation_config
    shallow = copy.copy(native)
    assert shallow is not native and shallow.decoder is native.decoder


def test_a_pickle_holds_no_weights(pair):
    _, native = pair()
    assert len(pickle.dumps(native)) < 20_000


def test_files_that_are_gone_or_changed(pair, tmp_path):
    _, native = pair()
    pack(make_student(hidden_size=32)).save_pretrained(tmp_path / "llama")  # another model in its place
    with pytest.raises(ValueError, match=r"model\.safetensors was changed since the model was loaded"):
        copy.deepcopy(native)
    (tmp_path / "llama/model.safetensors").unlink()
    for use in (copy.deepcopy, pickle.dumps, lambda model: model.dequantize()):
        with pytest.raises(ValueError, match=r"model\.safetensors is gone"):
            use(native)


@torch.no_grad()
def test_floats(pair, tmp_path):
    _, native = pair()
    floats = native.dequantize(torch.float32)
    expected = pack(make_student(options={"activation_bits": None}), table_bits=32)
    assert_close(floats(random_tokens()).logits, expected(random_tokens()).logits, 1e-5)
    assert native.backend == "native" and floats.num_parameters() == native.num_parameters()
    assert native.dequantize("bfloat16").dtype == torch.bfloat16


@torch.no_grad()
def test_floats_of_what_was_packed_while_loading(tmp_path):
    make_student().save_pretrained(tmp_path / "online")
    expected = pack(make_student(options={"activation_bits": None}), table_bits=32)(random_tokens()).logits
    floats = BitNetModelForCausalLM.from_pretrained(tmp_path / "online", export=True).dequantize(torch.float32)
    assert_close(floats(random_tokens()).logits, expected, 2e-3)  # (tables in 16 bits)


@torch.no_grad()
def test_floats_of_transformers_own_formats(tmp_path):
    exact = save_stock(tmp_path / "stock", "offline")
    native = BitNetModelForCausalLM.from_pretrained(tmp_path / "stock", export=True)
    floats = native.dequantize(torch.float32)
    weight = floats.model.layers[0].mlp.up_proj.weight
    assert torch.equal(weight, exact.model.layers[0].mlp.up_proj.weight)


@torch.no_grad()
def test_where_transformers_computes(tmp_path):
    pack(make_student("phi"), table_bits=32).save_pretrained(tmp_path)
    model = BitNetModelForCausalLM.from_pretrained(tmp_path)
    expected = model(random_tokens()).logits
    other = copy.deepcopy(model)
    assert other.model is not model.model and torch.equal(other(random_tokens()).logits, expected)
    floats = model.dequantize(torch.float32)
    assert floats is not model.model and torch.equal(model(random_tokens()).logits, expected)
    unrounded = pack(make_student("phi", options={"activation_bits": None}), table_bits=32)
    assert_close(floats(random_tokens()).logits, unrounded(random_tokens()).logits, 1e-5)


def test_floats_of_an_exported_model_keep_how_it_generates(tmp_path):
    student = make_student("llama")
    student.generation_config.eos_token_id = [2, 9]
    student.generation_config.temperature, student.generation_config.do_sample = 0.6, True
    student.save_pretrained(tmp_path / "online")
    native = BitNetModelForCausalLM.from_pretrained(tmp_path / "online", export=True)
    floats = native.dequantize()
    assert floats.generation_config.eos_token_id == [2, 9] and floats.generation_config.temperature == 0.6
    assert floats.name_or_path == native.config.name_or_path


def test_options_of_saving_that_are_not_known(pair, tmp_path):
    _, native = pair()
    with pytest.raises(TypeError, match="unknown options: max_shard_sise, weight_bit"):
        native.save_pretrained(tmp_path / "again", max_shard_sise="1MB", weight_bit=1.6)
    assert not (tmp_path / "again").exists()
