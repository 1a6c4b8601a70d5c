"""Export to the packed checkpoint that the native decoder loads, and what Optimum's `TasksManager` knows of it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from optimum.exporters.base import ExporterConfig
from optimum.exporters.tasks import TasksManager
from transformers import AutoConfig

from hf_bitdistill.architectures import NATIVE
from hf_bitdistill.evaluation.score_record import carry_record
from hf_bitdistill.files.model_folder import check_output, replace_model
from hf_bitdistill.files.weight_files import find_weight_files
from hf_bitdistill.modeling.companions import carry_settings
from hf_bitdistill.modeling.model_heads import PIPELINE_TASKS, head_of
from hf_bitdistill.runtime import Student
from hf_bitdistill.verify import keep_answers


logger = logging.getLogger(__name__)

TASKS = {task: head for head, task in PIPELINE_TASKS.items()}

register_tasks_manager_bitnet = TasksManager.create_register("bitnet")


class BitNetExportConfig(ExporterConfig):
    """What is exported: a model type and a task. Nothing is traced, so there are no dummy inputs."""

    SUPPORTS_PAST = True

    def __init__(self, config: Any, task: str = "text-generation", use_past: bool = False, **kwargs: Any):
        self.config = config
        self.task = task
        self.use_past = use_past

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        axes = {0: "batch_size", 1: "sequence_length"}
        return {"input_ids": axes, "attention_mask": axes}


for _model_type in NATIVE:
    register_tasks_manager_bitnet(_model_type, "text-generation", "text-generation-with-past", "text-classification")(
        BitNetExportConfig
    )


def export(
    model_id: str,
    output: Path,
    task: str = "auto",
    max_shard_size: str = "50GB",
    dtype: str | None = None,
    table_bits: int | None = None,
    weight_bits: float | None = None,
    **hub: Any,
) -> None:
    """Write a packed checkpoint, with tokenizer and generation settings.

    Args:
        model_id: folder or Hub id of an online student, a packed one, or a BitNet model in a format of transformers.
        output: folder to write.
        task: `"text-generation"`, `"text-classification"`, or `"auto"`: what the checkpoint is.
        dtype, table_bits, weight_bits: how weights are stored, see [`hf_bitdistill.pack`]. By default a packed checkpoint is written as it is
            stored, and any other as `pack` does by default.
        hub: options of `from_pretrained` of transformers (`revision`, `token`, ...).

    Raises:
        NotAStudentError: it is no ternary checkpoint.
        CheckpointError: a damaged file; names file and tensor.
        ValueError: an unknown task or option, or `output` is, lies in or contains the folder of the model.
        OSError: no such model.
    """
    check_output(output, model=model_id)
    config = AutoConfig.from_pretrained(model_id, **hub)
    if task == "auto":
        task = PIPELINE_TASKS[head_of(config)]
    if task not in TASKS:
        raise ValueError(f"task {task!r} is not supported; choose auto, {' or '.join(TASKS)}.")
    if config.model_type not in NATIVE:
        logger.warning(
            f"{model_id}: the native decoder cannot compute {config.model_type!r}; the exported checkpoint will run on "
            "packed layers in transformers."
        )
    student = Student(config, find_weight_files(model_id, config, **hub), TASKS[task])
    with replace_model(output) as folder:
        student.save(folder, max_shard_size, dtype, table_bits, weight_bits)
        tokenizer = carry_settings(model_id, folder, **hub)
        carry_record(model_id, folder)
    keep_answers(output, tokenizer)
