"""`bitdistill env`: what is installed and what computes. Paste it into bug reports."""

from __future__ import annotations

import argparse
import importlib.metadata
import json

from .. import __version__, ops
from ..machine.environment import describe_environment


_PACKAGES = ("accelerate", "datasets", "evaluate", "huggingface-hub", "optimum", "peft", "safetensors", "tokenizers")


def make_parser(prog: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog=prog, description=__doc__)


def run(argv: list[str], prog: str) -> None:
    make_parser(prog).parse_args(argv)
    versions = {name: _version(name) for name in _PACKAGES}
    report = {"hf-bitdistill": __version__, **describe_environment(), "packages": versions, "native": ops.status()}
    print(json.dumps(report, indent=2))


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
