"""A process of its own for what is measured, which waits while another one is."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from typing import Any


class MeasuredProcess:
    """A script that writes a line of JSON when it is ready, and one for every line that it reads.

    Args:
        environment: variables beside those of this process.

    Attributes:
        about: what it wrote first.
    """

    def __init__(self, interpreter: str, script: str, *arguments: str, environment: Mapping[str, str] | None = None):
        command = [interpreter, script, "--work", *arguments]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        self.about = self._read()

    def _read(self) -> Any:
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._process.args[0]} ended with {self._process.wait()}")
        return json.loads(line)

    def measure(self, what: str, threads: int) -> float:
        """Tokens a second."""
        self._process.stdin.write(json.dumps([what, threads]) + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(30)
