"""Whether the native decoder answers as the online student in torch does.

    python benchmarks/check_decoder.py --model FOLDER [--output FILE]

FOLDER holds a full-precision model, which is ternarised as it is, or a student, online or packed. Compared are the logits of all positions of
20 prompts, and greedy continuations of 128 tokens: one by one, in padded batches of 8, and after the rows of a cache were exchanged. The
continuations of torch come from the packed model, whose logits equal those of the online student bit for bit (checked here for every prompt, unless
FOLDER holds a packed one).
Embedding, head, keys and values are float32 here, so that differences come from the order of float32 sums alone: such a difference can carry an
activation over the rounding boundary of its int8 value. Where a continuation differs, the lead that torch's choice had is reported. And as a
measure of what the order of sums does to this model, torch is compared with itself: its `eager` attention with its `sdpa` attention.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import tempfile
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from hf_bitdistill import BitNetConfig, pack
from hf_bitdistill.machine.environment import describe_environment
from hf_bitdistill.modeling.cache_name import CACHE_NAME


PROMPTS = [
    "The harbour was quiet that morning, and",
    "To compile the program you need",
    "Water boils at a lower temperature when",
    "She opened the letter slowly because",
    "The three largest cities of the country are",
    "A good recipe for bread begins with",
    "In 1969 two men walked on",
    "The doctor said that the results",
    "Once upon a time, in a small village,",
    "The main difference between a list and a tuple is",
    "Birds fly south in winter because",
    "He had never seen so many books, so",
    "If you multiply seven by eight, you get",
    "The museum is open every day except",
    "My favourite season is autumn, since",
    "The engine started, coughed twice and",
    "Light travels faster than sound, which is why",
    "Dear Sir or Madam, I am writing to",
    "The committee decided to postpone",
    "Under the old bridge there was",
]


def greedy(model, ids: torch.Tensor, mask: torch.Tensor, new_tokens: int, pad: int) -> torch.Tensor:
    output = model.generate(
        ids,
        attention_mask=mask,
        do_sample=False,
        min_new_tokens=new_tokens,
        max_new_tokens=new_tokens,
        pad_token_id=pad,
    )
    return output[:, ids.shape[1] :]


def lead(model, ids: torch.Tensor, continuation: torch.Tensor, step: int) -> float:
    """By how much the logit of the token chosen at `step` leads the next one."""
    logits = model(torch.cat([ids, continuation[None, :step]], dim=1)).logits[0, -1]
    best = logits.topk(2).values
    return (best[0] - best[1]).item()


def load(folder: Path) -> tuple[PreTrainedModel, PreTrainedModel, PreTrainedModel]:
    """The student as it is stored, packed, and packed with `eager` attention."""
    stored = getattr(AutoConfig.from_pretrained(folder), "quantization_config", None) or {}
    mode = stored.get("quantization_mode") if isinstance(stored, dict) else stored.quantization_mode
    # What the folder says of a student's quantisation stands; a full-precision model gets the default.
    options = {} if mode else {"quantization_config": BitNetConfig()}
    models = [AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval() for _ in range(3)]
    if mode != "offline":
        models[1:] = [pack(model, inplace=True) for model in models[1:]]
    models[2].set_attn_implementation("eager")
    return tuple(models)


@torch.inference_mode()
def main() -> None:
    from optimum.bitnet import BitNetModelForCausalLM

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--new_tokens", type=int, default=128)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.model, padding_side="left")
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    tokenizer.pad_token_id = pad
    torch_model, packed, eager = load(args.model)
    with tempfile.TemporaryDirectory() as folder:
        torch_model.save_pretrained(folder)
        native = BitNetModelForCausalLM.from_pretrained(folder, export=True, head_bits=32, kv_dtype="float32")
    if native.backend != "native":
        raise SystemExit(f"the native decoder is not in use: {native.backend}")

    worst, size, equal_argmax, positions = 0.0, 0.0, 0, 0
    singles, differing = [], []
    median, torch_median, torch_worst, torch_equal = [], [], 0.0, 0
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        mask = torch.ones_like(ids)
        expected, got = torch_model(ids).logits, native(ids, attention_mask=mask).logits
        worst = max(worst, (expected - got).abs().max().item())
        size = max(size, expected.abs().max().item())
        equal_argmax += (expected.argmax(-1) == got.argmax(-1)).sum().item()
        positions += ids.shape[1]
        if not torch.equal(expected, packed(ids).logits):
            raise SystemExit("the packed model differs from the online student")
        other = eager(ids).logits
        torch_worst = max(torch_worst, (expected - other).abs().max().item())
        torch_median.append((expected - other).abs().median().item())
        median.append((expected - got).abs().median().item())
        wanted = greedy(packed, ids, mask, args.new_tokens, pad)[0]
        singles.append(wanted)
        torch_equal += torch.equal(wanted, greedy(eager, ids, mask, args.new_tokens, pad)[0])
        found = greedy(native, ids, mask, args.new_tokens, pad)[0]
        if not torch.equal(wanted, found):
            step = int((wanted != found).nonzero()[0])
            differing.append({"prompt": prompt, "token": step, "lead": lead(packed, ids, wanted, step)})

    batch_differing = []
    for start in range(0, len(PROMPTS), 8):
        batch = tokenizer(PROMPTS[start : start + 8], return_tensors="pt", padding=True)
        found = greedy(native, batch.input_ids, batch.attention_mask, args.new_tokens, pad)
        for row, (ids, wanted) in enumerate(zip(found, singles[start : start + 8], strict=True)):
            if not torch.equal(ids, wanted):
                step = int((wanted != ids).nonzero()[0])
                prompt = tokenizer(PROMPTS[start + row], return_tensors="pt").input_ids
                batch_differing.append(
                    {"prompt": PROMPTS[start + row], "token": step, "lead": lead(packed, prompt, wanted, step)}
                )

    # Rows exchanged in the middle must go on as what they became.
    batch = tokenizer(PROMPTS[:4], return_tensors="pt", padding=True)
    order = torch.tensor([2, 0, 3, 1])
    output = native(**batch, use_cache=True)
    cache = output[CACHE_NAME]
    cache.reorder_cache(order)
    tokens = output.logits[:, -1].argmax(-1)[order]
    straight = native(**batch, use_cache=True)
    next_straight = native(
        straight.logits[:, -1].argmax(-1)[:, None],
        attention_mask=torch.nn.functional.pad(batch.attention_mask, (0, 1), value=1),
        cache=straight[CACHE_NAME],
    ).logits[order]
    exchanged = native(
        tokens[:, None],
        attention_mask=torch.nn.functional.pad(batch.attention_mask, (0, 1), value=1)[order],
        cache=cache,
    ).logits

    result = {
        "model": args.model.name,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "environment": describe_environment(),
        "prompts": len(PROMPTS),
        "largest_logit": size,
        "largest_logit_difference": worst,
        "median_logit_difference": statistics.median(median),
        "torch_eager_against_sdpa": {
            "largest_logit_difference": torch_worst,
            "median_logit_difference": statistics.median(torch_median),
            "equal_continuations": torch_equal,
        },
        "positions": positions,
        "positions_with_equal_argmax": equal_argmax,
        "new_tokens": args.new_tokens,
        "equal_continuations": len(PROMPTS) - len(differing),
        "differing": differing,
        "equal_continuations_in_batches_of_8": len(PROMPTS) - len(batch_differing),
        "differing_in_batches": batch_differing,
        "reorder_largest_difference": (next_straight - exchanged).abs().max().item(),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if args.output:
        args.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
