"""How many rows of an 8-bit output head in two parts have to be read whole: for greedy decoding, and for top-k and top-p sampling.

    python benchmarks/bench_head_rows.py PACKED --texts corpus.txt --output benchmarks/results/head_rows.json

Counted where the texts go on as they are, at temperature 1: of the rows, and of the panels of 16 rows, those whose bound by the first part reaches
the least logit that is kept, which is taken as known. Nothing is timed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer

from hf_bitdistill.machine.environment import describe_environment
from hf_bitdistill.ops import c_header as c
from hf_bitdistill.quantization import quantize_table
from hf_bitdistill.runtime.families import DecoderSpec
from hf_bitdistill.runtime.matrices import load_table
from hf_bitdistill.runtime.students import Student
from optimum.bitnet import BitNetModelForCausalLM


_HEADER, _PANEL = 64, 16


class FirstPart:
    """The first part of a student's output head, as the native library packs it, and the whole of it.

    Args:
        folder: of a packed student with its head in floats.
        spec: of its decoder; the norm in front of the head has no offset.

    Raises:
        ValueError: the head is too small to be kept in two parts.
    """

    def __init__(self, folder: str, spec: DecoderSpec):
        student = Student(
            AutoConfig.from_pretrained(folder), [str(file) for file in Path(folder).glob("*.safetensors")]
        )
        norm = student.files.read(spec.final_norm.tensor).float() + spec.final_norm.offset
        table = load_table(student.files, spec.head, 8, None, norm)
        if table.kind != c.TABLE_SPLIT:
            raise ValueError(f"{folder}: the output head is kept whole")
        codes, self._scale = quantize_table(torch.cat([rows for _, rows in student.files.rows(spec.head)]), 8)
        rows, columns = codes.shape
        padded = -(-rows // _PANEL) * _PANEL
        # As csrc/kernels/split.h has it: header | order of the columns | scales | norms | steps | ...
        at, parts = _HEADER, []
        for count, dtype in (
            (columns, torch.int32),
            (padded, torch.float32),
            (padded, torch.float32),
            (padded, torch.uint8),
        ):
            size = count * dtype.itemsize
            parts.append(table.data[at : at + size].view(dtype))
            at += -(-size // _HEADER) * _HEADER
        order, _, norms, steps = parts
        kept = columns // 8 // _PANEL * _PANEL
        self._rest = order[kept:].long()
        step = steps[:rows, None].to(torch.int16)
        low = (codes[:, self._rest] + 8 * step) % step
        self._whole = codes.float()
        self._low = low.float() - (step - 1) / 2  # what the second part adds, less its middle
        self._radius = norms[:rows] * self._scale

    def shares(self, hidden: Tensor) -> dict[str, dict[str, float]]:
        """Of the rows, and of the panels of 16 rows, those that can be among what is wanted, where a bound of the first part alone, and the least
        logit that is kept, are known: the least that has to be read of the second part.

        Args:
            hidden: states in front of the head, float32 `[n, C]`.
        """
        largest = hidden.abs().amax(dim=1, keepdim=True).clamp(min=1e-5)
        x = (hidden * (127 / largest)).round()
        logits = (x @ self._whole.T) * self._scale
        rest = x[:, self._rest]
        most = logits - (rest @ self._low.T) * self._scale + rest.norm(dim=1, keepdim=True) * self._radius
        ordered = logits.sort(dim=1, descending=True).values
        mass = (ordered * (largest / 127)).softmax(dim=1).cumsum(dim=1)
        places = {"k=1": torch.zeros(len(x)), "k=50": torch.full((len(x),), 49), "p=0.9": (mass < 0.9).sum(dim=1)}
        shares = {}
        for name, place in places.items():
            least = ordered.gather(1, place.long().clamp(max=ordered.shape[1] - 1)[:, None])
            needed = most >= least
            padded = torch.nn.functional.pad(needed, (0, -needed.shape[1] % _PANEL))
            panels = padded.view(len(x), -1, _PANEL).any(dim=2)
            shares[name] = {"rows": needed.double().mean().item(), "panels": panels.double().mean().item()}
        return shares


def mean_shares(parts: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """The mean of the results of several batches of equal size."""
    return {
        name: {key: round(math.fsum(part[name][key] for part in parts) / len(parts), 5) for key in first}
        for name, first in parts[0].items()
    }


def needed(decoder, folder: str, text: Tensor, stretches: int, length: int = 64) -> dict[str, dict[str, float]]:
    """What has to be read of the second part behind the second half of so many stretches of the text."""
    first_part = FirstPart(folder, decoder.spec)
    stride = max(1, (len(text) - length) // stretches)
    index = torch.arange(length // 2, length)
    found = []
    for number in range(stretches):
        tokens = text[number * stride :][:length]
        hidden = decoder.forward(decoder.new_cache(1), tokens, torch.zeros_like(tokens), index, hidden=True)
        found.append(first_part.shares(hidden))
    return mean_shares(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a packed student with its head in floats")
    parser.add_argument("--texts", type=Path, required=True, help="a text file")
    parser.add_argument("--stretches", type=int, default=16, help="of the text, 32 tokens counted of each")
    parser.add_argument("--name", help="of the model, for the record")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()

    model = BitNetModelForCausalLM.from_pretrained(args.model, head_bits=8)
    text = torch.tensor(AutoTokenizer.from_pretrained(args.model)(args.texts.read_text(), verbose=False).input_ids)
    result = {
        "model": args.name or Path(args.model).name,
        "vocabulary": model.config.vocab_size,
        "hidden_size": model.config.hidden_size,
        "tokens": 32 * args.stretches,
        "rows_needed": needed(model.decoder, args.model, text, args.stretches),
        "machine": describe_environment(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    print(json.dumps(result["rows_needed"]), flush=True)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
