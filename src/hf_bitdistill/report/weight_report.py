"""What happened to the latent weights of a student, read from files: where they lie between the boundaries, and zeros."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ..config import QUANT_METHOD, BitNetConfig
from ..files.weight_files import find_weight_files
from ..nn.bit_linear import from_checkpoint
from ..quantization import expand_weight_scale, ternarize


HISTOGRAM_RANGE = 3.0
"""Histograms go from minus to plus this, in units of the scale; what lies outside is in the outermost bins."""
_BINS = 120
# Within this distance of a boundary (in units of the scale) a weight is called close to it.
_CLOSE = 0.1


@dataclass(frozen=True)
class LayerWeights:
    """One projection.

    Attributes:
        name: of its weight in the file.
        zeros: share of codes that are 0.
        close: share of weights within 0.1 scales of a boundary, where a small step changes the code.
        histogram: counts of `W / scale`, int64 `[120]` over `-3 .. 3`.
    """

    name: str
    zeros: float
    close: float
    histogram: Tensor


def student_options(folder: Path) -> BitNetConfig | None:
    """The [`BitNetConfig`] of an online student's folder; `None` for any other model."""
    config = folder / "config.json"
    if not config.is_file():
        return None
    values = json.loads(config.read_text(encoding="utf-8")).get("quantization_config") or {}
    if values.get("quant_method") != QUANT_METHOD or values.get("quantization_mode") != "online":
        return None
    return BitNetConfig.from_dict(values)


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        files = find_weight_files(folder)
    except OSError:
        return  # a run that has saved none yet
    for file in files:
        with safe_open(file, framework="pt") as reader:
            for name in sorted(reader.keys()):
                yield name, reader.get_tensor(name)


def measure_weights(folder: Path, options: BitNetConfig, names: set[str] | None = None) -> dict[str, LayerWeights]:
    """Measure the projections in a folder's safetensors files, one tensor at a time.

    Args:
        folder: an online student, or (with `names`) its full-precision source.
        options: of the student: granularity and group size.
        names: the tensors to look at. Default: those with the shape of a latent weight in a file, `[R, 1, C]`.
    """
    layers = {}
    for name, tensor in _tensors(folder):
        if (names is None and (tensor.ndim != 3 or tensor.shape[1] != 1)) or (names is not None and name not in names):
            continue
        weight = from_checkpoint(tensor).float()
        codes, scale = ternarize(weight, options.weight_granularity, options.scale_group_size)
        normalized = weight / expand_weight_scale(scale, weight.shape[1], options.scale_group_size)
        inside = normalized.clamp(-HISTOGRAM_RANGE, HISTOGRAM_RANGE)
        histogram = torch.histc(inside, _BINS, -HISTOGRAM_RANGE, HISTOGRAM_RANGE).long()
        close = ((normalized.abs() - 0.5).abs() < _CLOSE).float().mean().item()
        layers[name] = LayerWeights(name, (codes == 0).float().mean().item(), close, histogram)
    return layers


def plot_histograms(title: str, file: Path, measured: dict[str, dict[str, LayerWeights]]) -> Path:
    """The share of weights by their distance from zero, all layers together, with the boundaries.

    Args:
        measured: label -> layers, as of [`measure_weights`].
    """
    from ..pages.figures import new_figure, save_figure

    figure, (axes,) = new_figure(width=7)
    width = 2 * HISTOGRAM_RANGE / _BINS
    centres = torch.arange(_BINS) * width - HISTOGRAM_RANGE + width / 2
    for label, layers in measured.items():
        counts = torch.stack([layer.histogram for layer in layers.values()]).sum(dim=0).double()
        axes.step(centres, counts / counts.sum(), where="mid", label=label)
    for boundary in (-0.5, 0.5):
        axes.axvline(boundary, color="black", linestyle=":", linewidth=1)
    axes.set_xlabel("latent weight / scale (dotted: where the code changes)")
    axes.set_ylabel("share of weights")
    axes.legend(fontsize="small")
    return save_figure(figure, title, file)


def plot_zeros(title: str, file: Path, measured: dict[str, dict[str, LayerWeights]]) -> Path:
    """The share of zero codes of every projection, in the order of the file."""
    from ..pages.figures import draw_curves, new_figure, save_figure

    figure, (axes,) = new_figure(width=7)
    draw_curves(
        axes,
        {
            label: (range(len(layers)), [layer.zeros for layer in layers.values()])
            for label, layers in measured.items()
        },
        xlabel="projection, in the order of the file",
        ylabel="share of zeros",
        marker=".",
    )
    return save_figure(figure, title, file)
