"""hf-bitdistill: 1.58-bit (BitNet b1.58) students of Hugging Face causal language models.

Importing this package registers the quantization method `"bitdistill"` with transformers, so that `from_pretrained`
can make, resume and load students. Everything else is imported when it is first used.
"""

from typing import TYPE_CHECKING

from .adapters.peft_hook import watch as _watch
from .config import BitNetConfig
from .modeling import quantizer as _quantizer  # noqa: F401 (registers with transformers)
from .modeling.lm_head import quantize_head
from .modeling.pack import pack
from .modeling.surgery import SurgeryError, apply_bitnet, ternary_share
from .modules.former_modules import find_former_modules as _find_former_modules
from .modules.lazy import attach as _attach


__version__ = "0.1.0.dev0"

# Public name -> module that defines it. Training code imports the Trainer, which takes seconds, so it waits.
# The function `warm_start` has the name of its package and is imported from there.
__getattr__, __dir__ = _attach(
    __name__,
    {
        "DistillationConfig": "training",
        "DistillationTrainer": "training",
        "PretrainingConfig": "training",
        "WarmStartConfig": "training.warm_start",
        "cache_teacher_logits": "training",
        "calibrate_sub_norm": "training.calibration",
        "find_massive_projections": "training.massive_activations",
        "least_squares_warm_start": "training.warm_start",
        "merge_adapter": "adapters.merging",
        "pack_corpus": "data",
        "push_to_hub": "hub",
    },
)

_watch()  # for PEFT, which is imported when it is used
_find_former_modules()  # which pickles name

if TYPE_CHECKING:
    from .adapters.merging import merge_adapter
    from .data import pack_corpus
    from .hub import push_to_hub
    from .training import DistillationConfig, DistillationTrainer, PretrainingConfig, cache_teacher_logits
    from .training.calibration import calibrate_sub_norm
    from .training.massive_activations import find_massive_projections
    from .training.warm_start import WarmStartConfig, least_squares_warm_start

__all__ = [
    "BitNetConfig",
    "DistillationConfig",
    "DistillationTrainer",
    "PretrainingConfig",
    "SurgeryError",
    "WarmStartConfig",
    "apply_bitnet",
    "cache_teacher_logits",
    "calibrate_sub_norm",
    "find_massive_projections",
    "least_squares_warm_start",
    "merge_adapter",
    "pack",
    "pack_corpus",
    "push_to_hub",
    "quantize_head",
    "ternary_share",
]
