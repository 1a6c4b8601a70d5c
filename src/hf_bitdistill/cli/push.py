"""`bitdistill push`: publish a student on the Hugging Face Hub, packed."""

from __future__ import annotations

import argparse

from ..hub import PUSH_FORMATS, push_to_hub


def make_parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument(
        "folder", help="a student, packed or trainable; a training's output; or that of bitdistill run"
    )
    parser.add_argument("repo_id", help="name or owner/name; it is made if it is not there")
    parser.add_argument("--private", action="store_true", default=None, help="of a repository that is made")
    parser.add_argument("--revision", help="branch; it is made if it is not there (default: main)")
    parser.add_argument(
        "--push_format",
        default="packed",
        choices=PUSH_FORMATS,
        help="1.6 bits a weight, the trainable student (in the folder online), or both",
    )
    parser.add_argument("--commit_message", help="of the one commit that is made")
    parser.add_argument(
        "--no-check-download",
        dest="check_download",
        action="store_false",
        help="do not download and verify what was published",
    )
    parser.add_argument("--token", help="default: HF_TOKEN, or of hf auth login")
    return parser


def run(argv: list[str], prog: str) -> None:
    options = vars(make_parser(prog).parse_args(argv))
    folder, repo_id = options.pop("folder"), options.pop("repo_id")
    what = "packed and online" if options["push_format"] == "both" else options["push_format"]
    print(f"{folder}: {what}, at {push_to_hub(folder, repo_id, **options)}")
