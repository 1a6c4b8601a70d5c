"""A program that loads a ternary student and never imports hf_bitdistill.

    bitdistill exec -- python examples/without_import.py packed/ "Once upon a time"

Any program is started like this: `bitdistill exec -- lm_eval --model hf --model_args pretrained=packed/ ...`. After
`bitdistill autoload on` all programs of the environment load students, started as ever; `bitdistill autoload off` undoes it.
"""

import sys

from transformers import pipeline


generate = pipeline("text-generation", model=sys.argv[1])
print(generate(sys.argv[2], max_new_tokens=16, do_sample=False)[0]["generated_text"])
