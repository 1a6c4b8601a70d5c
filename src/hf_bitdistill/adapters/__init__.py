"""Adapters (PEFT) of students: LoRA beside ternary layers, online and packed.

PEFT is imported when an adapter is, never by `import hf_bitdistill`.
"""

from ..nn.carried_adapters import adapted_modules


__all__ = ["adapted_modules"]
