import pytest
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    AUTO_QUANTIZER_MAPPING,
    AutoQuantizationConfig,
)

from hf_bitdistill import BitNetConfig


def test_registered_with_transformers():
    assert AUTO_QUANTIZATION_CONFIG_MAPPING["bitdistill"] is BitNetConfig
    assert "bitdistill" in AUTO_QUANTIZER_MAPPING


def test_round_trip_through_a_dictionary():
    config = BitNetConfig(
        sub_norm="all", weight_granularity="group", group_size=64, modules_to_not_convert=["layers.0"]
    )
    again = AutoQuantizationConfig.from_dict(config.to_dict())
    assert isinstance(again, BitNetConfig)
    assert again.to_dict() == config.to_dict()


@pytest.mark.parametrize(
    "options, name",
    [
        ({"quantization_mode": "offlin"}, "quantization_mode"),
        ({"sub_norm": True}, "sub_norm"),
        ({"sub_norm_eps": 0}, "sub_norm_eps"),
        ({"weight_granularity": "column"}, "weight_granularity"),
        ({"group_size": 100}, "group_size"),
        ({"activation_bits": 4}, "activation_bits"),
        ({"modules_to_not_convert": "lm_head"}, "modules_to_not_convert"),
        ({"modules_without_sub_norm": "down_proj"}, "modules_without_sub_norm"),
        ({"projections": {"wq": "in"}}, "projections"),
        ({"head_bits": 6}, "head_bits"),
        ({"granularity": "row"}, "granularity"),
    ],
)
def test_bad_options_are_named(options, name):
    with pytest.raises(ValueError, match=name):
        BitNetConfig(**options)
