"""TRL's SFTTrainer trains a ternary student, and its packed form gets an adapter for a task of its own.

    python examples/trl_sft.py --model BASE --dataset texts.jsonl --output_dir out

The dataset has a column "text" (or TRL's "messages", or "prompt" and "completion"). Needs `pip install trl`.
"""

import argparse
from pathlib import Path

import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer

from hf_bitdistill import BitNetConfig, pack
from hf_bitdistill.verify import save_packed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id of a full-precision model")
    parser.add_argument("--dataset", required=True, help="a JSON Lines file")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/trl_sft"))
    parser.add_argument("--max_steps", type=int, default=1000)
    options = parser.parse_args()
    rows = load_dataset("json", data_files=options.dataset, split="train")
    common = {"max_steps": options.max_steps, "max_length": 512, "packing": True, "report_to": "none"}
    common["bf16"] = torch.cuda.is_available()

    # TRL loads the model by its name, and makes it a student. In float32: 16 bits would round small updates away.
    student = SFTTrainer(
        options.model,
        args=SFTConfig(
            str(options.output_dir / "student"),
            model_init_kwargs={"quantization_config": BitNetConfig(), "dtype": "float32"},
            **common,
        ),
        train_dataset=rows,
    )
    student.train()
    student.save_model()
    packed = options.output_dir / "packed"
    save_packed(pack(student.model), packed, student.processing_class)

    adapter = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(packed),
        args=SFTConfig(str(options.output_dir / "adapter"), learning_rate=2e-4, **common),
        train_dataset=rows,
        processing_class=student.processing_class,
        peft_config=LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    adapter.train()
    adapter.save_model()
    print(f"The packed student is in {packed}, an adapter of it in {options.output_dir / 'adapter'}.")


if __name__ == "__main__":
    main()
