"""`pack`: online student -> offline model."""

from __future__ import annotations

import copy

import torch
from transformers import PreTrainedModel

from .layers import BitLinear, TernaryLinear
from .quantization import PackedWeightError
from .quantizer import BitDistillQuantizer
from .saving import save_safely
from .surgery import SurgeryError, student_config


def pack(model: PreTrainedModel, inplace: bool = False) -> PreTrainedModel:
    """Pack the current weights of an online student into 2 bits each, for inference.

    Args:
        model: an online student, as made by [`apply_bitnet`] or `from_pretrained`.
        inplace: replace the layers of `model` itself, which frees its latent weights; otherwise `model` stays as it is
            and everything that is not ternary is copied.

    Returns:
        An offline model in eval mode, ready for `generate` and `save_pretrained`. Without `inplace` it shares no tensor
        with `model`.

    Raises:
        SurgeryError: `model` is not a student, is packed already, or carries adapters (PEFT).
        PackedWeightError: a latent weight is not finite, or its codes are all equal; names the module. Or any other tensor
            (a SubLN, a norm, the embedding) is not finite; names the tensor.
    """
    if not isinstance(model, PreTrainedModel) or getattr(model, "_hf_peft_config_loaded", False):
        raise SurgeryError(
            f"pack takes the student itself, not {type(model).__name__} with wrappers or adapters: merge or unload them "
            "first (merging an adapter into latent weights changes what the student computes: evaluate it again)."
        )
    config = copy.deepcopy(student_config(model))
    layers = {name: module for name, module in model.named_modules() if isinstance(module, BitLinear)}
    if not layers:
        raise SurgeryError(f"{type(model).__name__} is packed already.")
    config.quantization_mode = "offline"
    _check_finite(model, {f"{name}.weight" for name in layers})

    packed = {}
    for name, layer in layers.items():
        try:
            packed[name] = TernaryLinear.from_bit_linear(layer, config)
        except PackedWeightError as error:
            raise PackedWeightError(f"{name}: latent weight {error}.") from None
        if inplace:
            model.set_submodule(name, packed[name])
    if not inplace:
        # deepcopy takes an entry of its memo for the copy: the latent weights are never duplicated.
        model = copy.deepcopy(model, {id(layer): packed[name] for name, layer in layers.items()})

    quantizer = BitDistillQuantizer(config, pre_quantized=True)
    model.hf_quantizer = quantizer
    model.is_quantized = True
    model.quantization_method = config.quant_method
    model.config.quantization_config = config
    save_safely(model)
    return model.requires_grad_(False).eval()


def _check_finite(model: PreTrainedModel, latent: set[str]) -> None:
    """Refuse a model that diverged. Latent weights are checked as they are packed."""
    for name, tensor in model.state_dict().items():
        if name in latent or not tensor.is_floating_point() or tensor.is_meta or not tensor.numel():
            continue
        # (The extremes are NaN if any number is.)
        if not all(torch.isfinite(extreme) for extreme in torch.aminmax(tensor)):
            raise PackedWeightError(
                f"{name} is not finite (it has a NaN or an infinity): go back to a checkpoint from before the run diverged."
            )
