"""The model card of a packed student: what the run measured, and how the student is asked."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from ..distillation.model_card import TAGS, TERNARY_TAGS, hub_model_id
from ..report.tables import markdown_table
from ..sizes import bytes_by_kind
from .examples import Examples
from .result import RecipeResult


def write_card(folder: Path, result: RecipeResult, base: str, examples: Examples) -> None:
    """`README.md` of a folder."""
    header, rows = result.cells()
    data = ModelCardData(
        library_name="transformers",
        base_model=hub_model_id(base),
        tags=[*TAGS, *TERNARY_TAGS],
        pipeline_tag="text-generation",
    )
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {result.output.resolve().name}",
        "A ternary (1.58-bit) student, made by `bitdistill run`.",
        f"Data: {result.data}.",
    ]
    if examples.task is not None:
        parts.append(f"It is asked with this prompt, and answers after it:\n\n```text\n{examples.task.prompt}\n```")
        if examples.task.label_words:
            parts.append(f"Answers: {', '.join(examples.task.label_words)}.")
    parts += [
        "## Scores",
        markdown_table(header, rows),
        *result.sentences(),
        "## Size",
        bytes_by_kind(folder).markdown(),
        "## Use",
        "```python\nimport hf_bitdistill  # registers the quantizer\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{folder.name}")\n```',
    ]
    ModelCard("\n\n".join(parts)).save(folder / "README.md")
