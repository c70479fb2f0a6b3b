"""``sterna verify``: is this checkpoint the real thing, and do we run it right."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from sterna.cli.common import positive
from sterna.errors import UsageError

EPILOG = """\
PASS: as it should be. FAIL: not; exit code 1. SKIP: could not be checked, with the reason.
One decoder layer is in memory at a time: the official checkpoint in BF16 needs less than 24 GB.
"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Declare the command."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "verify",
        help="is this checkpoint the real thing, and do we run it right",
        description="Verify a checkpoint: hashes of all files, names, shapes and types of all tensors, tokenizer and "
        "template against published vectors, then every layer against transformers, or against our numpy oracle where "
        "transformers is not installed.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="checkpoint directory")
    parser.add_argument("--quick", action="store_true", help="sizes instead of hashes of weights, and some layers only")
    parser.add_argument(
        "--backend",
        choices=("auto", "native", "torch", "numpy"),
        default="auto",
        help="what is verified (default: auto)",
    )
    parser.add_argument(
        "--reference", choices=("auto", "transformers", "numpy"), default="auto",
        help="what it is compared with (default: transformers if installed, else numpy)",
    )  # fmt: skip
    parser.add_argument(
        "--tokens", type=positive, default=48, metavar="N", help="tokens to compute (default: %(default)s)"
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--layer", type=int, action="append", metavar="N", help="only this layer; may be given several times"
    )
    which.add_argument("--no-layers", action="store_true", help="files, tensors and vectors only, nothing is computed")
    parser.add_argument("--json", action="store_true", help="last line of standard output: the whole result as JSON")
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from sterna.verify import VerifyRequest, verify

    if not args.directory.is_dir():
        raise UsageError(
            f"{args.directory} is not a directory, allowed is one that holds a checkpoint",
            hint="`sterna pull --list` names the pulled ones",
        )
    request = VerifyRequest(
        args.directory, quick=args.quick, backend=args.backend, reference=args.reference, tokens=args.tokens,
        layers=() if args.no_layers else None if args.layer is None else tuple(args.layer),
    )  # fmt: skip
    checks = []
    for check in verify(request, say=lambda text: print(text, file=sys.stderr, flush=True)):
        checks.append(check)
        print(f"{check.status} {check.name}: {check.detail}", file=sys.stderr if args.json else sys.stdout, flush=True)
        if check.hint and check.status != "PASS":
            print(f"     hint: {check.hint}", file=sys.stderr if args.json else sys.stdout, flush=True)
    failed = sum(check.status == "FAIL" for check in checks)
    if args.json:
        print(json.dumps({"checks": [check.as_json() for check in checks], "failed": failed}))
    return 1 if failed else 0
