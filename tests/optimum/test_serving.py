"""Which models transformers' server loads on the native decoder, and on which threads they run. Requests are in tests/interop."""

import threading

import pytest
import torch
from transformers import LlamaForCausalLM
from transformers import __version__ as transformers_version

from hf_bitdistill import pack
from hf_bitdistill.nn import TernaryLinear
from students import make_student


pytest.importorskip("fastapi", reason="needs the extra `serving`")
pytest.importorskip("openai", reason="needs the extra `serving`")
pytest.importorskip("uvicorn", reason="needs the extra `serving`")

from optimum.bitnet import serving


pytestmark = pytest.mark.usefixtures("native_decoder")


@pytest.fixture
def load(tmp_path, tiny_tokenizer):
    """Loads what is saved in a folder, and gives the model that would be served."""
    managers = []

    def load(model, name="model", native=True, **options):
        model.save_pretrained(tmp_path / name)
        tiny_tokenizer.save_pretrained(tmp_path / name)
        folder = str(tmp_path / name)
        managers.append(serving.NativeModelManager(native, device="cpu", dtype="auto", force_model=folder, **options))
        return managers[-1].load_model_and_processor(managers[-1].process_model_name(folder))[0]

    yield load
    for manager in managers:
        manager.shutdown()


@pytest.mark.parametrize("kind", ["packed", "online"])
def test_ternary_models_are_native(kind, load):
    student = make_student(vocab_size=384)
    # (Before 5.24 transformers took what follows the sign for a revision of a folder too.)
    name = "model@sign" if tuple(map(int, transformers_version.split(".")[:2])) >= (5, 24) else "model"
    model = load(pack(student) if kind == "packed" else student, name)
    assert isinstance(model, serving.ServedModel) and model.backend == "native"


def test_packed_layers_where_they_are_asked_for(load):
    model = load(pack(make_student(vocab_size=384)), native=False)
    assert isinstance(model.model.layers[0].mlp.up_proj, TernaryLinear)


def test_other_models_are_transformers_own(load, tiny_llama_config):
    assert type(load(LlamaForCausalLM(tiny_llama_config))) is LlamaForCausalLM


def test_a_second_quantization_is_refused(load):
    with pytest.raises(ValueError, match="quantized already: leave --quantization out"):
        load(pack(make_student(vocab_size=384)), quantization="bnb-8bit")


def test_a_model_without_a_chat_template_is_told(load, caplog):
    load(pack(make_student(vocab_size=384)))
    assert "has no chat template" in caplog.text


@pytest.mark.parametrize(
    "options, native",
    [
        ({}, True),
        ({"device": "cpu"}, True),
        ({"device": "cuda"}, False),
        ({"compile": True}, False),
        ({"continuous_batching": True}, False),
        ({"attn_implementation": "eager"}, False),
    ],
)
def test_what_asks_for_torch(options, native, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert serving._may_be_native(options) is native
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert serving._may_be_native(options) is (native and bool(options))


def test_requests_run_at_once_and_fail_alone():
    manager = serving.TakingTurns()
    both = threading.Barrier(2)
    first, second = (manager.submit(both.wait, 60) for _ in range(2))
    assert {first.result(60), second.result(60)} == {0, 1}
    with pytest.raises(ZeroDivisionError):
        manager.submit(lambda: 1 / 0).result(60)


def test_a_server_that_is_built_in_another_way_is_refused(monkeypatch):
    monkeypatch.setattr(serving, "_REPLACED", ("_model_manager", "_another"))
    with pytest.raises(RuntimeError, match=r"without _another, which .* does not know: `bitdistill exec"):
        serving.NativeServe()


def test_keys_and_values_of_few_bits(load):
    assert load(pack(make_student(vocab_size=384)), kv_bits=8).decoder.kv_dtype == "int8"
    with pytest.raises(ValueError, match="kv_bits=7"):
        serving.NativeServe(kv_bits=7)
