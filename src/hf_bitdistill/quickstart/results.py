"""What one run of the quickstart measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .settings import QuickstartSettings


if TYPE_CHECKING:
    from .measure import Speed
    from .scoring import AnswerScores
    from .stages import StageLog


@dataclass
class ModelResult:
    """One saved model, measured after it was loaded again.

    Attributes:
        folder: relative to the output folder.
        scores: on the held-out examples.
        weights_bytes: its safetensors file(s).
        projection_bytes: the part of it that the projections take: their weights and scales.
    """

    folder: str
    scores: AnswerScores
    weights_bytes: int
    projection_bytes: int


@dataclass(frozen=True)
class ShownExample:
    """A held-out signature, its documentation, and what the packed and the full-precision model wrote."""

    signature: str
    summary: str
    packed: str
    full: str


@dataclass
class RunResult:
    """Everything a run measured; times in seconds.

    Attributes:
        settings: what it was run with.
        machine: processor, versions, date.
        data: sizes of the text and of the task.
        chance: scores of knowing only how frequent each token is; `None` until they are computed.
        models: by way of training: "FP-SFT", "BitNet-SFT", "BitDistill".
        perplexities: on held-out text, by description.
        speeds: tokens a second, by model.
        logs: losses of each training.
        stage_seconds: wall time by stage.
        shown: a few written summaries.
        seconds: wall time of the run.
        report: the report's path.
    """

    settings: QuickstartSettings
    machine: dict[str, str]
    data: dict[str, int] = field(default_factory=dict)
    chance: AnswerScores | None = None
    models: dict[str, ModelResult] = field(default_factory=dict)
    perplexities: dict[str, float] = field(default_factory=dict)
    speeds: dict[str, Speed] = field(default_factory=dict)
    logs: dict[str, StageLog] = field(default_factory=dict)
    stage_seconds: dict[str, float] = field(default_factory=dict)
    shown: list[ShownExample] = field(default_factory=list)
    seconds: float = 0.0
    report: Path | None = None
