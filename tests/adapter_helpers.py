"""LoRA adapters as if they had been trained."""

import torch


def draw(adapted, adapter="default", seed=0):
    """Random A and B of one adapter, whose B starts at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if f".lora_A.{adapter}." in name or f".lora_B.{adapter}." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
