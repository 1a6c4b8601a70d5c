"""`HardwareArguments`: the machines that are planned for."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ..recipe.settings import RecipeError


def _option(default: Any, text: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": text})


@dataclass
class HardwareArguments:
    """Machines to plan for (`--plan`): what a training would take on each GPU under each engine, without running anything. The run itself is
    started by torchrun or accelerate launch."""

    nodes: int = _option(1, "Machines to plan for.")
    gpus: int | None = _option(None, "GPUs of a machine to plan for.")
    gpu_memory: float | None = _option(None, "GB of a GPU to plan for.")
    tokens_per_second: float | None = _option(
        None,
        "Tokens of examples a second that one such GPU trains on, for the time. Default: what an earlier --plan on one measured.",
    )
    output_file: str | None = _option(None, "Also write the plan for these machines here, as JSON.")

    @property
    def is_given(self) -> bool:
        return any(getattr(self, field.name) != field.default for field in dataclasses.fields(self))

    @property
    def processes(self) -> int:
        return self.nodes * (self.gpus or 1)

    def require(self, is_plan: bool) -> None:
        """Refuse what is missing or makes no sense.

        Raises:
            RecipeError: names the option.
        """
        if not is_plan:
            given = [field.name for field in dataclasses.fields(self) if getattr(self, field.name) != field.default]
            raise RecipeError(
                f"--{given[0]} belongs to --plan: a run on several GPUs is started by torchrun or accelerate launch"
            )
        if self.gpus is None or self.gpu_memory is None:
            missing = "gpus" if self.gpus is None else "gpu_memory"
            raise RecipeError(
                f"--{missing} is required to plan for machines, as in --nodes 2 --gpus 8 --gpu_memory 80"
            )
        for name in ("nodes", "gpus", "gpu_memory", "tokens_per_second"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise RecipeError(f"{name} must be positive, not {value}")
