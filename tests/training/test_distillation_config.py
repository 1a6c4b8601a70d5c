"""`DistillationConfig`: defaults, parsing, one-line errors."""

import pytest
from transformers import HfArgumentParser

from hf_bitdistill.training import DistillationConfig


def test_defaults_are_the_published_ones():
    config = DistillationConfig()
    assert (config.temperature, config.ce_loss_weight) == (5.0, 1.0)
    assert (config.logits_loss_weight, config.attention_loss_weight) == (1.0, 100.0)
    assert config.relation_normalization == "cosine" and config.quantization_warmup_steps == 0


def test_command_line(tmp_path):
    (config,) = HfArgumentParser(DistillationConfig).parse_args_into_dataclasses(
        [
            *("--output_dir", str(tmp_path), "--attention_layers", "3", "-1", "--teacher_attention_layers", "5", "-1"),
            *("--teacher_model_init_kwargs", '{"dtype": "bfloat16"}', "--relation_normalization", "scaled_dot"),
            *("--relation_heads", "8", "--relation_causal", "true", "--use_cpu", "true"),
        ]
    )
    assert config.attention_layers == [3, -1] and config.teacher_attention_layers == [5, -1]
    assert config.teacher_model_init_kwargs == {"dtype": "bfloat16"}
    assert config.relation_heads == 8 and config.relation_causal is True
    assert DistillationConfig(**{k: v for k, v in config.to_dict().items() if k in ("temperature",)}).temperature == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, "temperature must be positive"),
        ({"temperature": float("nan")}, "temperature must be positive"),
        ({"ce_loss_weight": -1}, "ce_loss_weight must be finite and not negative"),
        ({"attention_loss_weight": float("inf")}, "attention_loss_weight must be finite"),
        ({"ce_loss_weight": 0, "logits_loss_weight": 0, "attention_loss_weight": 0}, "all 0"),
        ({"relation_normalization": "l2"}, "'cosine' or 'scaled_dot', got 'l2'"),
        ({"relation_heads": 0}, "relation_heads must be at least 1"),
        ({"kl_chunk_size": 0}, "kl_chunk_size must be at least 1"),
        ({"quantization_warmup_steps": -1}, "quantization_warmup_steps must not be negative"),
        ({"hidden_loss_weight": -1.0}, "hidden_loss_weight must be finite and not negative"),
        ({"hidden_loss_share": 0.0}, "hidden_loss_share must be above 0 and at most 1"),
        ({"dead_zone_leak": 1.5}, "dead_zone_leak must be between 0 and 1"),
        ({"weight_decay_share": -0.5}, "weight_decay_share must be between 0 and 1"),
        ({"attention_layers": []}, "attention_layers is empty"),
        ({"attention_layers": [1, 2], "teacher_attention_layers": [1]}, "must be of equal number"),
        ({"teacher_attention_layers": [1, 2]}, "default: one layer"),
        ({"teacher_model_init_kwargs": "bfloat16"}, "not a JSON object"),
        (
            {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
            "non-reentrant activation checkpointing",
        ),
    ],
)
def test_errors_have_one_line(options, message):
    with pytest.raises(ValueError, match=message) as error:
        DistillationConfig(**options)
    assert "\n" not in str(error.value)
