"""`verify`: digests, codes and scales of every packed layer, and the answers of both loaders beside those of the packed model."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers.utils import CONFIG_NAME

from ..config import QUANT_METHOD
from ..files.json_files import read_json
from ..files.tensor_headers import CheckpointError
from ..files.weight_files import find_weight_files, stale_files
from ..modeling.digests import check_digests
from ..modeling.locate import find_model
from .loaders import LOADERS
from .packed_tensors import LayerFacts, packed_layers
from .reference import REFERENCE_FILE, deviation, read_reference


# Of the logits' spread, in the median. A sound student of one task may be some tenths away on prompts that are nothing like it, where roundings
# that tip over add up; the largest logits of a model whose layers are mixed up are more than one away.
_FAR = 0.7


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: whether it is as it should be (`None`: it could not be told), and what was found."""

    name: str
    passed: bool | None
    found: str


@dataclass
class Verification:
    """What [`verify`] found.

    Attributes:
        model: that was looked at.
        layers: packed ones, by name.
    """

    model: str
    checks: list[Check] = field(default_factory=list)
    layers: list[LayerFacts] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return all(check.passed is not False for check in self.checks)

    def problems(self) -> list[str]:
        return [f"{check.name}: {check.found}" for check in self.checks if check.passed is False]


def verify(model: str | Path, answers: bool = True, **hub: Any) -> Verification:
    """Look at a packed student on disk, or at one on the Hub after its download.

    Args:
        model: folder or Hub id.
        answers: whether both loaders are tried in a process of their own.
        hub: `revision`, `cache_dir`, `token` of a download.

    Raises:
        FileNotFoundError: there is no such model.
        CheckpointError: it is no packed student.
    """
    found = Verification(str(model))
    folder = Path(find_model(str(model), **hub))
    if not folder.is_dir():
        folder = Path(snapshot_download(str(model), **hub))
    config = read_json(folder / CONFIG_NAME)
    options = config.get("quantization_config") or {}
    if options.get("quant_method") != QUANT_METHOD or options.get("quantization_mode") != "offline":
        raise CheckpointError(f"{model} is no packed student: pack it first (bitdistill pack)")
    files: list[str] = []

    def weights() -> str:
        files.extend(find_weight_files(folder))
        stale = stale_files(files)
        if stale:
            raise CheckpointError(f"{', '.join(file.name for file in stale)} belong to another save: remove them")
        return f"{len(files)} file{'s' if len(files) > 1 else ''}, {sum(map(os.path.getsize, files)):,} bytes"

    def digests() -> str | None:
        return "every tensor is the one that was saved" if check_digests(files, options) else None

    def layers() -> str:
        found.layers.extend(packed_layers(files))
        if not found.layers:
            raise CheckpointError("there is no packed layer in it")
        zeros = [layer.zeros for layer in found.layers]
        return f"{len(zeros)} packed layers, {100 * min(zeros):.0f} to {100 * max(zeros):.0f} % zeros"

    found.checks.append(_checked("weight files", weights))
    if found.passed:
        found.checks.append(_checked("digests", digests, "saved without digests"))
        found.checks.append(_checked("codes and scales", layers))
    if found.passed and answers:
        outputs = _outputs(folder)
        for loader in LOADERS:
            look = partial(_compared, folder, loader, outputs.get(loader))
            found.checks.append(_checked(f"answers, {loader}", look, f"no {REFERENCE_FILE}"))
    return found


def _checked(name: str, look: Callable[[], str | None], unknown: str = "") -> Check:
    try:
        text = look()
    except (ValueError, OSError) as error:
        return Check(name, False, " ".join(str(error).split()))
    return Check(name, None if text is None else True, unknown if text is None else text)


def _outputs(folder: Path) -> dict[str, dict[str, Any]]:
    """What each loader answers in a fresh process, or its `error`; empty without a reference."""
    reference = folder / REFERENCE_FILE
    if not reference.is_file():
        return {}
    command = [sys.executable, "-m", "hf_bitdistill.verify.verify_worker", str(folder), str(reference)]
    done = subprocess.run(command, capture_output=True, text=True)
    outputs = {}
    for line in done.stdout.splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            values = json.loads(line)
            outputs[values["loader"]] = values
    error = next(reversed(done.stderr.strip().splitlines()), "")
    died = {"error": f"the process ended with status {done.returncode} {error}".rstrip()}
    return {loader: outputs.get(loader, died) for loader in LOADERS}


def _compared(folder: Path, loader: str, output: dict[str, Any] | None) -> str | None:
    """What a loader answers beside what the packed model answered.

    Raises:
        CheckpointError: it does not load, or answers otherwise.
    """
    if output is None:
        return None
    expected = read_reference(folder / REFERENCE_FILE)
    if "error" in output:
        raise CheckpointError(f"it does not load or run: {output['error']}")
    distance, same = deviation(expected, output["answers"])
    text = (
        f"median deviation {distance:.1e} of the logits' spread, {100 * same:.0f} % of the first choices are the same"
    )
    if output["backend"] != loader:
        text += f" (computed by {output['backend']})"
    if not distance <= _FAR:
        raise CheckpointError(f"the model answers otherwise than when it was packed: {text}")
    return text


def table(layers: list[LayerFacts]) -> Iterator[list[str]]:
    """Rows for people: name, shape, share of zeros, range of scales."""
    for layer in layers:
        yield [
            layer.name.removesuffix(".weight"),
            f"{layer.rows} x {layer.columns}",
            f"{100 * layer.zeros:.1f} %",
            f"{layer.smallest_scale:.3g} to {layer.largest_scale:.3g}",
        ]
