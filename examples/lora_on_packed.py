"""LoRA beside a packed ternary model: train it with PEFT and Trainer, then run it natively on the same base.

    python examples/lora_on_packed.py --model PACKED --dataset texts.jsonl --output_dir out

The dataset has a column "text". The base stays as it is: any number of adapters share it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)

from optimum.bitnet import BitNetModelForCausalLM


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id of a packed student")
    parser.add_argument("--dataset", required=True, help="a JSON Lines file")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/lora_on_packed"))
    parser.add_argument("--max_steps", type=int, default=200)
    parser.add_argument("--prompt", default="Once upon a time")
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    rows = load_dataset("json", data_files=options.dataset, split="train")
    rows = rows.map(
        lambda row: tokenizer(row["text"], truncation=True, max_length=256), remove_columns=rows.column_names
    )

    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(options.model),
        LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    model.print_trainable_parameters()
    arguments = TrainingArguments(
        str(options.output_dir), max_steps=options.max_steps, learning_rate=2e-4, save_strategy="no", report_to="none"
    )
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    Trainer(model, arguments, train_dataset=rows, data_collator=collator).train()
    model.save_pretrained(options.output_dir)

    native = BitNetModelForCausalLM.from_pretrained(options.model, adapter=options.output_dir)
    prompt = tokenizer(options.prompt, return_tensors="pt")
    print("with adapter:", tokenizer.decode(native.generate(**prompt, max_new_tokens=32)[0]))
    native.disable_adapters()  # or load_adapter(another folder), and set_adapter(its name)
    print("without:     ", tokenizer.decode(native.generate(**prompt, max_new_tokens=32)[0]))


if __name__ == "__main__":
    main()
