"""Every record against transformers: a tiny model of its type becomes a student, is packed, and computes the same in every way it can."""

import dataclasses
import re

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from architectures import ARCHITECTURES as ROWS
from architectures import MORE, random_tokens, tiny_model
from hf_bitdistill import BitNetConfig, pack, ternary_share
from hf_bitdistill.architectures import ARCHITECTURES, GGUF_GRAPHS, INPUT, NATIVE, OUTPUT, find_architecture, registry
from hf_bitdistill.export.errors import UnsupportedExportError
from hf_bitdistill.export.gguf_models import file_model
from hf_bitdistill.modeling.surgery import find_projections
from hf_bitdistill.nn import BitLinear, SubLN
from hf_bitdistill.runtime import UnsupportedModelError, describe, load_decoder
from students import assert_close, make_student, open_student


# Routers of mixtures, by the names that `GATES` has.
_LEFT = {"afmoe": r"mlp\.router\.gate", "hunyuan_v1_moe": r"mlp\.gate\.wg", "phimoe": r"mlp\.router"}


def test_every_record_has_a_row_and_an_architecture_of_transformers():
    assert set(ARCHITECTURES) <= set(ROWS) | set(MORE), "add a row to tests/architectures.py"
    assert not set(ROWS) & set(MORE) and set(NATIVE) <= set(ROWS)
    assert set(ARCHITECTURES) <= set(CONFIG_MAPPING.keys())
    assert len(registry._RECORDS) == len(ARCHITECTURES), "a model type has two records"


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_projections_are_where_the_record_says(model_type):
    record, model = ARCHITECTURES[model_type], tiny_model(model_type)
    placed = find_projections(model, BitNetConfig())
    assert {projection.role for projection in placed} == {INPUT, OUTPUT}
    plan, own = "in its tensor-parallel plan", f"the record of {model_type!r}"
    for projection in placed:
        if projection.fused_in:
            assert projection.reason == "a part of an expert"
        elif not record.projections:
            assert projection.reason.endswith(plan)
        else:  # (Newer versions of transformers have a plan for some of these.)
            assert projection.reason == own or projection.reason.endswith(plan)
            suffix = next(suffix for suffix in record.projections if projection.name.endswith(f".{suffix}"))
            assert projection.role == record.projections[suffix], projection
    names = [projection.name for projection in placed]
    experts = any(projection.fused_in for projection in placed)
    unused = [suffix for suffix in record.projections if not any(name.endswith(f".{suffix}") for name in names)]
    assert experts or not unused, unused


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@torch.no_grad()
def test_a_student_is_the_same_packed_and_loaded(model_type, tmp_path):
    student, tokens = make_student(model_type), random_tokens()
    left = [name for name in ternary_share(student).left if not re.search(_LEFT.get(model_type, "nothing"), name)]
    assert not left
    norms = [module for module in student.modules() if isinstance(module, SubLN)]
    assert bool(norms) != ARCHITECTURES[model_type].own_sub_norms
    assert sum(isinstance(module, BitLinear) for module in student.modules()) >= 8
    expected = student(tokens).logits
    packed = pack(student, table_bits=32)
    assert_close(packed(tokens).logits, expected)
    packed.save_pretrained(tmp_path)
    assert_close(AutoModelForCausalLM.from_pretrained(tmp_path)(tokens).logits, expected)


@pytest.mark.parametrize("model_type", NATIVE)
@torch.no_grad()
def test_the_native_decoder_computes_what_the_record_says(model_type, tmp_path, native_decoder):
    student, tokens = make_student(model_type), random_tokens(1, 19)
    pack(student, table_bits=32).save_pretrained(tmp_path)
    decoder = load_decoder(open_student(tmp_path), head_bits=32, kv_dtype="float32")
    found = decoder.forward(decoder.new_cache(1), tokens[0], torch.zeros_like(tokens[0]), torch.arange(19))
    assert_close(found, student(tokens).logits[0])


@pytest.mark.parametrize("model_type", sorted(set(ARCHITECTURES) - set(NATIVE)))
def test_without_a_description_the_native_decoder_refuses(model_type):
    with pytest.raises(UnsupportedModelError, match=f"architecture '{model_type}'"):
        describe(make_student(model_type))


def exported_graph(model_type, sub_norm):
    """The graph of a student, or why there is none."""
    try:
        return file_model(make_student(model_type, options={"sub_norm": sub_norm}, tie_word_embeddings=True)).graph
    except UnsupportedExportError as error:
        return str(error)


@pytest.mark.parametrize("model_type", sorted(ROWS.keys() & ARCHITECTURES.keys()))
def test_gguf_graphs_are_those_of_the_record(model_type):
    record = ARCHITECTURES[model_type]
    graph = exported_graph(model_type, "none")
    if record.gguf is None:
        assert isinstance(graph, str) and repr(model_type) in graph
    else:
        assert graph is record.gguf
    graph = exported_graph(model_type, "output")
    if record.gguf_with_sub_norms is None:
        assert isinstance(graph, str)
    else:  # ... or it says what of the architecture that graph does not have
        assert graph is record.gguf_with_sub_norms or repr(record.gguf_with_sub_norms.name) in graph


def test_what_is_imported_from_a_graph_is_exported_to_it():
    for name, graph in GGUF_GRAPHS.items():
        assert graph.name == name and exported_graph(graph.model_type, graph.sub_norm) is graph


def test_of_an_architecture_without_a_record_only_its_plan_is_known():
    record = find_architecture("brand_new")
    assert record.model_type == "brand_new"
    assert not record.projections and record.decoder is None and record.gguf is None
    assert find_architecture("llama") is ARCHITECTURES["llama"]


@pytest.mark.parametrize(
    "field, seen_as, value",
    [
        ("norm_offset", "final_norm.offset", 1.0),
        ("scaled_embedding", "embedding_scale", 48**0.5),
        ("attention_scale_key", "attention_scale", 5**-0.5),
        ("attention_softcap", "attention_softcap", 1.5),
        ("logit_softcap", "logit_softcap", 2.5),
    ],
)
def test_each_field_of_a_description_is_one_thing(monkeypatch, field, seen_as, value):
    options = {"query_pre_attn_scalar": 5, "attn_logit_softcapping": 1.5, "final_logit_softcapping": 2.5}
    student = make_student("gemma2", **options)

    def seen():
        spec = dataclasses.asdict(describe(student)) | {"ropes": None}
        spec["final_norm.offset"] = spec["final_norm"]["offset"]
        return spec

    with_it, record = seen(), ARCHITECTURES["gemma2"]
    default = type(record.decoder).__dataclass_fields__[field].default
    without = dataclasses.replace(record.decoder, **{field: default})
    monkeypatch.setitem(ARCHITECTURES, "gemma2", dataclasses.replace(record, decoder=without))
    changed = {key for key, now in seen().items() if now != with_it[key]}
    assert with_it[seen_as] == pytest.approx(value) and seen_as in changed
    # (Every norm of a layer has the offset.)
    assert changed - {"final_norm", "layers"} == {seen_as}
    assert ("layers" in changed) == (field == "norm_offset")


@pytest.mark.parametrize("field, message", [("activation_key", "tanh"), ("may_be_bidirectional", "bidirectional")])
def test_keys_that_only_some_architectures_read(monkeypatch, field, message):
    student = make_student("gemma2")
    changed = {
        "activation_key": ("hidden_activation", "tanh"),
        "may_be_bidirectional": ("use_bidirectional_attention", True),
    }
    setattr(student.config, *changed[field])
    with pytest.raises(UnsupportedModelError, match=message):
        describe(student)
    record = ARCHITECTURES["gemma2"]
    other = {"activation_key": "other_activation", "may_be_bidirectional": False}
    student.config.other_activation = "gelu"
    without = dataclasses.replace(record.decoder, **{field: other[field]})
    monkeypatch.setitem(ARCHITECTURES, "gemma2", dataclasses.replace(record, decoder=without))
    assert describe(student).layers


def test_linear_layers_of_a_row_are_those_of_the_architecture():
    """A row that is too small to have what an architecture has would show nothing of it."""
    for model_type in ARCHITECTURES:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**(ROWS | MORE)[model_type]))
        layers = next(module for module in model.modules() if isinstance(module, nn.ModuleList))
        assert len(layers) == 2, model_type
