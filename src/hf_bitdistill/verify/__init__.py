"""Is a packed student on disk what was packed: `verify(folder)`; and what it answered then: `save_packed`, `write_reference`."""

from .reference import REFERENCE_FILE, carry_answers, keep_answers, save_packed, write_reference
from .verify import Check, Verification, verify, verify_online


__all__ = [
    "REFERENCE_FILE",
    "Check",
    "Verification",
    "carry_answers",
    "keep_answers",
    "save_packed",
    "verify",
    "verify_online",
    "write_reference",
]
