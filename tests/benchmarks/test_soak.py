"""The soak test in its short mode, and that it finds what it looks for."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

from hf_bitdistill.runtime import NativeDecoder


SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "soak.py"

pytestmark = pytest.mark.usefixtures("native_decoder")


def soak(monkeypatch, folder, *arguments):
    """Its result, and with what it ended."""
    output = folder / "soak.json"
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--output", str(output), *map(str, arguments)])
    ended = None
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    except SystemExit as error:
        ended = str(error)
    return json.loads(output.read_text()), ended


def test_soak(tmp_path, monkeypatch):
    result, ended = soak(monkeypatch, tmp_path, "--minutes", 0.05)
    assert ended is None and result["deviations"] == []
    assert sum(result["results"].values()) > 20


def test_soak_finds_a_bit(tmp_path, monkeypatch):
    """One that batches alone have."""
    forward = NativeDecoder.forward

    def other(self, cache, tokens, sequences, *rest):
        out = forward(self, cache, tokens, sequences, *rest)
        return -out if cache.sequences == 5 else out

    monkeypatch.setattr(NativeDecoder, "forward", other)
    result, ended = soak(monkeypatch, tmp_path, "--minutes", 1, "--threads", 2)
    assert "differs" in ended
    assert "texts (0, 1, 2, 3, 4) padded" in result["deviations"][0]


def test_soak_finds_a_leak(tmp_path, monkeypatch):
    forward, kept = NativeDecoder.forward, []

    def leaking(self, *arguments):
        kept.append(torch.ones(1 << 18))
        return forward(self, *arguments)

    monkeypatch.setattr(NativeDecoder, "forward", leaking)
    result, ended = soak(monkeypatch, tmp_path, "--minutes", 0.03, "--threads", 2)
    assert "memory grew" in ended and result["deviations"] == []
