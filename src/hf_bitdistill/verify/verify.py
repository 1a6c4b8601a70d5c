"""`verify`: digests, codes and scales of every packed layer; and what both loaders make of it, beside the answers of the packed model."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING
from transformers.utils import CONFIG_NAME

from ..config import QUANT_METHOD
from ..files.json_files import read_json
from ..files.tensor_headers import CheckpointError
from ..files.weight_files import find_weight_files, stale_files
from ..modeling.digests import check_digests
from ..modeling.locate import find_model
from ..modeling.preflight import read_contents
from .downloads import fetch_student
from .loaders import LOADERS
from .packed_tensors import LayerFacts, packed_layers
from .reference import REFERENCE_FILE, Reference, deviation, read_reference


# Of the logits' spread, in the median. Another loader, dtype, version or machine adds floats in another order: a sound student of one task may
# be some tenths away then on prompts that are nothing like it, where roundings that tip over add up. The largest logits of a model whose
# layers are mixed up are more than one away.
_FAR = 0.7
# Where all of that is alike, the same sums come out.
_FAR_ALIKE = 0.01


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

    def untold(self) -> list[str]:
        """Names of what could not be told."""
        return [check.name for check in self.checks if check.passed is None]


def verify(model: str | Path, answers: bool = True, **hub: Any) -> Verification:
    """Look at a packed student on disk, or at one on the Hub after its download.

    Args:
        model: folder or Hub id. Of one on the Hub only what is looked at is downloaded.
        answers: whether both loaders are tried, each in a process of its own.
        hub: `revision`, `cache_dir`, `token` of a download.

    Raises:
        FileNotFoundError: there is no such model.
        CheckpointError: it is no packed student.
    """
    folder, config = _open(model, "offline", hub)
    found = Verification(str(model))
    files = _check_files(found, folder, config)

    def layers() -> str:
        found.layers.extend(packed_layers(files))
        if not found.layers:
            raise CheckpointError("there is no packed layer in it")
        zeros = [layer.zeros for layer in found.layers]
        return f"{len(zeros)} packed layers, {100 * min(zeros):.0f} to {100 * max(zeros):.0f} % zeros"

    if files:
        found.checks.append(_checked("codes and scales", layers))
    if found.passed and answers:
        found.checks.extend(_try_loaders(folder, config))
    return found


def verify_online(model: str | Path, **hub: Any) -> Verification:
    """Look at a trainable student on disk, or at one on the Hub after its download: whether its weights are those that were saved.

    Args:
        model, hub: see [`verify`].

    Raises:
        FileNotFoundError: there is no such model.
        CheckpointError: it is no trainable student.
    """
    folder, config = _open(model, "online", hub)
    found = Verification(str(model))
    _check_files(found, folder, config)
    return found


def _open(model: str | Path, mode: str, hub: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """Where a student lies, downloaded if need be, and its config.

    Raises:
        See [`verify`].
    """
    folder = Path(find_model(str(model), **hub))
    if not folder.is_dir():
        folder = fetch_student(str(model), **hub)
    config = read_json(folder / CONFIG_NAME)
    options = config.get("quantization_config") or {}
    if options.get("quant_method") != QUANT_METHOD or options.get("quantization_mode") != mode:
        what = {"offline": "no packed student: pack it first (bitdistill pack)", "online": "no trainable student"}
        raise CheckpointError(f"{model} is {what[mode]}")
    return folder, config


def _check_files(found: Verification, folder: Path, config: dict[str, Any]) -> list[str]:
    """Look for weight files and at their digests; returns the files, none where something is wrong with them."""
    files: list[str] = []

    def weights() -> str:
        files.extend(find_weight_files(folder))
        stale = stale_files(files)
        if stale:
            raise CheckpointError(f"{', '.join(file.name for file in stale)} belong to another save: remove them")
        size = read_contents(files).nbytes
        return f"{len(files)} file{'s' if len(files) > 1 else ''}, {size:,} bytes"

    def digests() -> str | None:
        known = check_digests(files, config["quantization_config"])
        return "every tensor is the one that was saved" if known else None

    found.checks.append(_checked("weight files", weights))
    if not found.passed:
        return []
    found.checks.append(_checked("digests", digests, "saved without digests"))
    return files


def _checked(name: str, look: Callable[[], str | None], unknown: str = "") -> Check:
    try:
        text = look()
    except (ValueError, OSError) as error:
        return Check(name, False, " ".join(str(error).split()))
    return Check(name, None if text is None else True, unknown if text is None else text)


def _try_loaders(folder: Path, config: dict[str, Any]) -> Iterator[Check]:
    """Load a student by each loader; what it answers is compared where that was kept."""
    if config.get("auto_map") and config.get("model_type") not in CONFIG_MAPPING:
        yield Check("loading", None, "not tried: the model needs code of its own, which is not run here")
        return
    reference = None
    if (folder / REFERENCE_FILE).is_file():
        try:
            reference = read_reference(folder / REFERENCE_FILE)
        except ValueError as error:
            yield Check("answers", False, str(error))
    else:
        yield Check("answers", None, f"nothing is stored to compare with: there is no {REFERENCE_FILE}")
    for loader in LOADERS:
        name = f"loading, {loader}" if reference is None else f"answers, {loader}"
        yield _checked(name, partial(_judged, loader, _run(loader, folder, reference), reference))


def _run(loader: str, folder: Path, reference: Reference | None) -> dict[str, Any]:
    """What a loader answers in a fresh process, or its `error`."""
    command = [sys.executable, "-m", "hf_bitdistill.verify.verify_worker", loader, str(folder)]
    if reference is not None:
        command.append(str(folder / REFERENCE_FILE))
    done = subprocess.run(command, capture_output=True, text=True)
    for line in reversed(done.stdout.splitlines()):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            values = json.loads(line)
            if values["loader"] == loader:
                return values
    error = next(reversed(done.stderr.strip().splitlines()), "")
    return {"error": f"the process ended with status {done.returncode} {error}".rstrip()}


def _judged(loader: str, output: dict[str, Any], reference: Reference | None) -> str:
    """What to say of a loader's output.

    Raises:
        CheckpointError: it does not load, or answers otherwise than the packed model.
    """
    if "error" in output:
        raise CheckpointError(f"it does not load or run: {output['error']}")
    by = "" if output["backend"] == loader else f" (computed by {output['backend']})"
    if reference is None:
        return f"it loads, and its logits are finite{by}"
    alike = output["conditions"] == reference.conditions
    distance, same = deviation(reference.answers, output["answers"])
    text = (
        f"median deviation {distance:.1e} of the logits' spread{', computed alike' if alike else ''}, "
        f"{100 * same:.0f} % of the first choices are the same{by}"
    )
    if not distance <= (_FAR_ALIKE if alike else _FAR):
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
