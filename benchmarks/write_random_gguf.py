"""The random model of a shape as GGUF, for other programs that `bench_decode.py` measures beside ours.

    python benchmarks/write_random_gguf.py --shape 0.6B --type F16 --output 0.6B-f16.gguf

What a program needs beyond that its own tool makes, for example `llama-quantize --token-embedding-type q8_0 0.6B-f16.gguf 0.6B.gguf iq2_bn` of
ik_llama.cpp. Needs the extra `interop`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from decode.models import SHAPES, write_checkpoint, write_gguf


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shape", required=True, choices=[name for name, shape in SHAPES.items() if not shape.num_experts]
    )
    parser.add_argument(
        "--type", default="TQ2_0", choices=["TQ2_0", "F16"], help="of the ternary weights; the rest is Q8_0"
    )
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=args.output.parent) as folder:
        checkpoint = Path(folder) / args.shape
        write_checkpoint(SHAPES[args.shape], checkpoint)
        write_gguf(SHAPES[args.shape], checkpoint, args.output, args.type)


if __name__ == "__main__":
    main()
