"""What a `PeftModel` around a student is given."""

from __future__ import annotations

import os
import weakref
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from ..modeling.preflight import is_student_checkpoint
from ..nn import BitLinear, Experts, QuantizedTable, StoredTable, TernaryLinear


logger = logging.get_logger(__name__)


class LogicalCount:
    """What `get_nb_trainable_parameters` (and so `print_trainable_parameters`) of a model with packed layers is: PEFT's own, and the weights
    that are held as integers, each counted as one."""

    def __init__(self, model: PeftModel):
        self._model = weakref.ref(model)

    def __call__(self) -> tuple[int, int]:
        """`(trainable, all)`."""
        model = self._model()
        assert model is not None  # (it is called as a method of it)
        trainable, total = PeftModel.get_nb_trainable_parameters(model)
        return trainable, total + sum(_held_as_integers(module) for module in model.modules())

    def __reduce__(self) -> tuple[Any, ...]:
        # The copy of a model counts the copy.
        return type(self), (self._model(),)


def _held_as_integers(module: nn.Module) -> int:
    if isinstance(module, TernaryLinear):
        return module.in_features * module.out_features
    return int(module.rows * module.columns) if isinstance(module, (QuantizedTable, StoredTable)) else 0


def complete(model: PeftModel, base: nn.Module) -> None:
    """Of a `PeftModel` that is being made around `base`.

    Raises:
        ValueError: PEFT took the experts of a student, which are linear layers, for the fused ones of the architecture.
    """
    if any(isinstance(module, Experts) for module in base.modules()):
        _check_targets(base)
    layers = [module for module in base.modules() if isinstance(module, (BitLinear, TernaryLinear))]
    if any(isinstance(layer, TernaryLinear) for layer in layers):
        model.get_nb_trainable_parameters = LogicalCount(model)  # type: ignore[method-assign]  # of this object alone
    if any(isinstance(layer, BitLinear) for layer in layers):
        _check_name(base.model if isinstance(base, BaseTuner) else base)


def _check_targets(tuner: nn.Module) -> None:
    for name, config in getattr(tuner, "peft_config", {}).items():
        parameters = getattr(config, "target_parameters", None)
        if parameters:
            raise ValueError(
                f"The adapter {name!r} is for experts: of this architecture PEFT looks for them in fused tensors ({sorted(parameters)}), "
                "which a student does not have, and would leave them out. Name other layers, such as "
                'target_modules=["q_proj", "k_proj", "v_proj", "o_proj"].'
            )


def _check_name(student: nn.Module) -> None:
    """An adapter's config says by which model it belongs to, by where that was loaded from."""
    name = student.name_or_path if isinstance(student, PreTrainedModel) else ""
    if not name or not os.path.isdir(name):
        return
    try:
        found = is_student_checkpoint(name)
    except (ValueError, OSError):
        return
    if not found:
        logger.warning(
            f"This student was made in memory of {name}, which is what its adapters will name as their base model: a full-precision model. "
            "Save the student and load it from there before it gets adapters, or name it when you load them: "
            "PeftModel.from_pretrained(student, adapter)."
        )
