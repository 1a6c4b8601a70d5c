import copy

import pytest

from adapter_helpers import draw


@pytest.fixture
def with_lora():
    """Puts LoRA around a copy of a model, its B moved off zero."""
    from peft import LoraConfig, get_peft_model

    def adapt(model, seed=0, **options):
        config = LoraConfig(**{"r": 4, "lora_alpha": 12, "target_modules": "all-linear", **options})
        adapted = get_peft_model(copy.deepcopy(model), config)
        draw(adapted, seed=seed)
        return adapted.eval()

    return adapt
