"""Is a packed student on disk what was packed: `verify(folder)`; and what it answered then: `write_reference`."""

from .reference import REFERENCE_FILE, write_reference
from .verify import Check, Verification, verify


__all__ = ["REFERENCE_FILE", "Check", "Verification", "verify", "write_reference"]
