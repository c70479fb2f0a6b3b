"""``sterna quantize``: a 4- or 8-bit checkpoint of our own, or a GGUF file."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sterna.cli.common import Subparsers, positive
from sterna.errors import UsageError
from sterna.quant.recipes import RECIPES

if TYPE_CHECKING:
    from sterna.checkpoint import Checkpoint
    from sterna.checkpoint.resumable import Progress, Record, WriteOptions
    from sterna.quant.base import Float32

GGUF_FORMATS = ("Q8_0", "Q4_0", "F16", "BF16", "F32")
DEFAULT_CALIBRATION_TOKENS = 2048


def add_parser(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Declare the command."""
    recipes = "; ".join(f"{each.name}: {each.purpose}" for each in RECIPES.values())
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "quantize",
        help="write a 4- or 8-bit checkpoint, or a GGUF file",
        description="Quantise a checkpoint tensor by tensor in bounded memory. A run that was killed goes on where it "
        "stopped when it is started again with the same arguments. A manifest says the format, the error and the SHA-256 "
        "of every tensor.",
    )
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="the checkpoint to read")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--recipe", choices=tuple(RECIPES), help=f"{recipes} (default: q4)")
    kind.add_argument("--gguf", choices=GGUF_FORMATS, help="write a GGUF file in this format instead")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="PATH", help="new directory; with --gguf, a .gguf file"
    )
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="UTF-8 text; errors are weighed by how large each input becomes on it",
    )
    parser.add_argument(
        "--calibration-tokens",
        type=positive,
        default=DEFAULT_CALIBRATION_TOKENS,
        metavar="N",
        help="tokens of that text to use (default: %(default)s)",
    )
    parser.add_argument(
        "--threads", type=positive, metavar="N", help="threads (default: as many as this process may use)"
    )
    parser.add_argument("--json", action="store_true", help="last line of standard output: the whole result as JSON")
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from sterna.checkpoint import Checkpoint
    from sterna.checkpoint.resumable import WriteOptions

    _check_paths(args)
    source = Checkpoint(args.model)
    importance = _importance(args, source) if args.calibration is not None else {}
    start = time.perf_counter()
    options = WriteOptions(
        num_threads=args.threads or _usable_cpus(), source_digest=source.fingerprint(), progress=_Reporter()
    )
    result = _write_gguf(args, source, importance, options) if args.gguf else _write(args, source, importance, options)
    result["seconds"] = round(time.perf_counter() - start, 2)
    print(
        f"wrote {result['out']}: {result['bytes']:,} bytes, {result['bits_per_weight']:.3f} bits per weight, "
        f"error {100 * result['error']:.2f} % (largest {100 * result['largest_error']:.2f} % in {result['largest_error_in']})",
        file=sys.stderr,
    )
    if args.json:
        print(json.dumps(result))
    return 0


def _check_paths(args: argparse.Namespace) -> None:
    if args.out.resolve() == args.model.resolve():
        raise UsageError(f"--out is the checkpoint {args.model} itself", hint="choose a new path")
    if args.gguf and (args.out.suffix != ".gguf" or args.out.is_dir()):
        raise UsageError(f"--out is {args.out}, with --gguf allowed is a file that ends in .gguf")
    if not args.gguf and args.out.exists() and not args.out.is_dir():
        raise UsageError(f"--out is {args.out}, a file; allowed is a directory")


def _write(
    args: argparse.Namespace, source: Checkpoint, importance: Mapping[str, Float32], options: WriteOptions
) -> dict[str, Any]:
    from sterna.checkpoint.packed_writer import copy_model_files, write_packed
    from sterna.quant.recipes import recipe

    chosen = recipe(args.recipe or "q4")
    copy_model_files(args.model, args.out)
    records = write_packed(args.out, source, chosen, importance=importance, options=options)
    return {"out": str(args.out), "recipe": chosen.name, **_summary(records)}


def _write_gguf(
    args: argparse.Namespace, source: Checkpoint, importance: Mapping[str, Float32], options: WriteOptions
) -> dict[str, Any]:
    from sterna.checkpoint.gguf_tokenizer import gguf_tokenizer
    from sterna.checkpoint.gguf_writer import uniform, write_gguf
    from sterna.checkpoint.resumable import write_manifest

    args.out.parent.mkdir(parents=True, exist_ok=True)
    tokenizer = gguf_tokenizer(args.model, vocab_size=source.config.text.vocab_size)
    if source.has_vision:
        print("the vision tower is left out: GGUF keeps it in a file of its own", file=sys.stderr)
    records = write_gguf(
        args.out,
        source,
        choose=uniform(args.gguf),
        tokenizer=tokenizer,
        file_type=args.gguf,
        name=args.model.resolve().name,
        importance=importance,
        options=options,
    )
    manifest = args.out.with_name(args.out.name + ".manifest.json")
    write_manifest(manifest, records, format="gguf", file_type=args.gguf, source=source.fingerprint())
    return {"out": str(args.out), "gguf": args.gguf, **_summary(records)}


def _summary(records: list[Record]) -> dict[str, Any]:
    """Bytes, bits and errors over all tensors; the mean error counts every weight alike."""
    weights = [math.prod(record.shape) for record in records]
    worst = max(records, key=lambda record: record.error)
    mean = sum(n * record.error for n, record in zip(weights, records, strict=True)) / sum(weights)
    total = sum(record.nbytes for record in records)
    return {
        "tensors": len(records),
        "bytes": total,
        "bits_per_weight": 8 * total / sum(weights),
        "weighted_tensors": sum(record.weighted for record in records),
        "error": mean,
        "largest_error": worst.error,
        "largest_error_in": worst.name,
    }


def _importance(args: argparse.Namespace, source: Checkpoint) -> dict[str, Float32]:
    from sterna.backends.numpy.recording import input_importance
    from sterna.chat.tokenizer import Tokenizer

    try:
        text = args.calibration.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {args.calibration} as UTF-8 text ({error})") from error
    # Some eight bytes make a token at most, so the rest of a long text need not be read.
    part = text[: 8 * args.calibration_tokens]
    token_ids = Tokenizer.from_directory(args.model).encode(part)[: args.calibration_tokens]
    if len(token_ids) < 2:
        raise UsageError(f"{args.calibration} holds {len(token_ids)} tokens, allowed is 2 or more")
    print(f"calibration: {len(token_ids):,} tokens of {args.calibration}", file=sys.stderr)
    return input_importance(
        source, token_ids, progress=lambda layer, layers: _status(f"calibration layer {layer}/{layers}")
    )


class _Reporter:
    """Progress on standard error: a changing line on a terminal, else one line per tenth."""

    def __init__(self) -> None:
        self._tenth = -1
        self._resumed = 0
        self._start = time.perf_counter()
        self._skipped_bytes = 0

    def __call__(self, progress: Progress) -> None:
        if progress.resumed:
            self._resumed += 1
            self._skipped_bytes = progress.done_bytes
            return
        if self._resumed:
            print(f"resumed: {self._resumed} tensors were there already", file=sys.stderr)
            self._resumed = 0
        share = progress.done_bytes / progress.total_bytes
        fresh = progress.done_bytes - self._skipped_bytes
        left = (time.perf_counter() - self._start) * (progress.total_bytes - progress.done_bytes) / max(1, fresh)
        line = f"{100 * share:5.1f} %  {left:6.0f} s left  {progress.format:<6} {progress.name}"
        if sys.stderr.isatty():
            _status(line, last=progress.done_bytes == progress.total_bytes)
        elif int(10 * share) > self._tenth:
            self._tenth = int(10 * share)
            print(line, file=sys.stderr)


def _status(line: str, *, last: bool = False) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[2K{line[:120]}", end="\n" if last else "", file=sys.stderr, flush=True)


def _usable_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
