"""What cannot be written for another program."""


class UnsupportedExportError(ValueError):
    """The other program cannot compute this student, or not as it is computed here: its message says what, and what to use instead."""
