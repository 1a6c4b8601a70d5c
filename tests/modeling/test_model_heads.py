"""Which head a model has is told in one place."""

import copy
import re
from pathlib import Path

import pytest
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
)

import hf_bitdistill
from architectures import tiny_model
from hf_bitdistill.modeling.model_heads import (
    HEADS,
    PIPELINE_TASKS,
    auto_class,
    check_known_head,
    head_of,
    is_classifier,
    model_head,
)
from optimum.bitnet import BitNetModelForCausalLM, BitNetModelForSequenceClassification


SOURCES = Path(hf_bitdistill.__file__).parents[1]
# Classes of Optimum must have their auto class as an attribute.
CLASSES_OF_OPTIMUM = {"optimum/bitnet/modeling_classification.py"}


def classifier(labels: int = 2):
    config = tiny_model("llama").config
    config.num_labels, config.pad_token_id = labels, 0
    return AutoModelForSequenceClassification.from_config(config)


def test_heads_of_models():
    assert model_head(tiny_model("llama")) == "causal_lm"
    assert model_head(classifier()) == "sequence_classification"
    config = BertConfig(vocab_size=10, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    with pytest.raises(ValueError, match="BertForMaskedLM has neither"):
        model_head(BertForMaskedLM(config))
    multi = copy.deepcopy(classifier(3))
    multi.config.problem_type = "multi_label_classification"
    with pytest.raises(ValueError, match="multi_label"):
        model_head(multi)
    with pytest.raises(ValueError, match="num_labels=1"):
        model_head(classifier(1))


def test_heads_of_configs():
    for names, head in (
        (["LlamaForSequenceClassification"], "sequence_classification"),
        (["LlamaForCausalLM"], "causal_lm"),
        ([], "causal_lm"),
        (None, "causal_lm"),
    ):
        config = LlamaConfig(architectures=names)
        assert (head_of(config), is_classifier(config)) == (head, head != "causal_lm")


def test_what_a_head_is_called():
    assert auto_class("causal_lm") is AutoModelForCausalLM is BitNetModelForCausalLM.auto_model_class
    classes = AutoModelForSequenceClassification, BitNetModelForSequenceClassification.auto_model_class
    assert classes == (auto_class("sequence_classification"),) * 2
    assert set(PIPELINE_TASKS) == set(HEADS)
    with pytest.raises(ValueError, match="one of causal_lm, sequence_classification, got 'regression'"):
        check_known_head("regression")


def test_no_other_module_tells_heads_apart_by_names_of_classes():
    telling = re.compile(
        r"AutoModelForSequenceClassification|\"ForSequenceClassification|\"sequence_classification\" if"
    )
    files = {
        file.relative_to(SOURCES).as_posix()
        for package in ("hf_bitdistill", "optimum")
        for file in (SOURCES / package).rglob("*.py")
        if telling.search(file.read_text())
    }
    assert files - CLASSES_OF_OPTIMUM - {"hf_bitdistill/hub/cards/card.py"} == {
        "hf_bitdistill/modeling/model_heads.py"
    }
