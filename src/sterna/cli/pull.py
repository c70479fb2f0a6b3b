"""``sterna pull``: get a checkpoint from a hub, a mirror or a directory, verified and recorded."""

from __future__ import annotations

import argparse
import json
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sterna import env
from sterna.cli.common import positive
from sterna.errors import UsageError

if TYPE_CHECKING:
    from sterna.hub import PullResult
    from sterna.hub.meter import Meter

DEFAULT_REPOSITORY = "Qwen/Qwen3.6-35B-A3B"
EPILOG = """\
An interrupted pull goes on where it stopped when the same command is run again. Every file is compared with the hash
that the hub publishes. HF_ENDPOINT names a mirror, HF_TOKEN a token for repositories that ask for one.
examples:
  sterna pull                                            the official checkpoint, 72 GB
  sterna pull Qwen/Qwen3.6-35B-A3B-FP8                   the official 8-bit one, 37 GB
  sterna pull OWNER/NAME-GGUF --file '*Q4_K_M.gguf'      one file of a repository
  sterna pull --from /mnt/usb/Qwen3.6-35B-A3B            without network
"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Declare the command."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "pull",
        help="get a checkpoint",
        description="Get a checkpoint: asks whether it fits, fetches only what is needed, verifies every file and "
        "records it. Commands without --model use the newest pulled checkpoint that fits.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "repository", nargs="?", metavar="REPO",
        help=f"OWNER/NAME, or OWNER/NAME/FILE for a single file (default: {DEFAULT_REPOSITORY})",
    )  # fmt: skip
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit (default: the newest)")
    parser.add_argument(
        "--file",
        action="append",
        default=[],
        metavar="PATTERN",
        help="only files of this name; may be given several times",
    )
    parser.add_argument("--text-only", action="store_true", help="without the vision tower, where it lies in own files")
    parser.add_argument("--from", type=Path, dest="source", metavar="DIR", help="from this directory, without network")
    parser.add_argument("--into", type=Path, metavar="DIR", help="where to put it (default: below STERNA_HOME)")
    parser.add_argument(
        "--context", type=positive, default=32_768, metavar="N", help="context that must fit too (default: %(default)s)"
    )
    parser.add_argument(
        "--hardware", metavar="NAME", help="ask whether it fits there, as in `sterna fit` (default: here)"
    )
    parser.add_argument("--ignore-fit", action="store_true", help="pull it even if it does not fit")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
    parser.add_argument("--list", action="store_true", help="list what was pulled")
    parser.add_argument("--json", action="store_true", help="last line of standard output: the whole result as JSON")
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    models = env.home() / "models"
    if args.list:
        return _list(models, as_json=args.json)
    with ProgressLine() as progress:
        result = _from_directory(args, models, progress) if args.source else _from_hub(args, models, progress)
    done = "would be pulled into" if args.dry_run else "pulled into"
    if args.json:
        print(json.dumps(_as_json(result, dry_run=args.dry_run)))
    else:
        size = sum(file.size for file in result.record.files)
        print(
            f"{result.record.repo_id}: {len(result.record.files)} files, {size / 1e9:.2f} GB, {done} {result.directory}"
        )
        if not args.dry_run:
            print(f"next: sterna verify {result.directory}")
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _from_hub(args: argparse.Namespace, models: Path, progress: ProgressLine) -> PullResult:
    from sterna.fit import find_hardware
    from sterna.hub import PullRequest, pull

    repo_id, files = _repository(args)
    request = PullRequest(
        models, repo_id, revision=args.revision, files=files, text_only=args.text_only, ignore_fit=args.ignore_fit,
        dry_run=args.dry_run, into=args.into, context=args.context,
        hardware=find_hardware(args.hardware) if args.hardware else None,
    )  # fmt: skip
    return pull(request, say=_say, progress=progress.show)


def _from_directory(args: argparse.Namespace, models: Path, progress: ProgressLine) -> PullResult:
    from sterna.hub import pull_directory

    for flag, value in (("--file", args.file), ("--revision", args.revision), ("--text-only", args.text_only),
                        ("--dry-run", args.dry_run), ("--hardware", args.hardware)):  # fmt: skip
        if value:
            raise UsageError(f"{flag} and --from were both given, allowed is one of them")
    return pull_directory(
        args.source, models, repo_id=args.repository, into=args.into, say=_say, progress=progress.show
    )


def _repository(args: argparse.Namespace) -> tuple[str, tuple[str, ...]]:
    """The repository, and the files that are wanted of it."""
    name = (args.repository or DEFAULT_REPOSITORY).strip("/")
    parts = name.split("/")
    if len(parts) < 2 or not all(parts) or "://" in name:
        raise UsageError(f"the repository is {name!r}, allowed is OWNER/NAME or OWNER/NAME/FILE")
    return "/".join(parts[:2]), (*(["/".join(parts[2:])] if parts[2:] else []), *args.file)


def _as_json(result: PullResult, *, dry_run: bool) -> dict[str, Any]:
    return {
        "directory": str(result.directory),
        "model": str(result.directory / result.record.gguf if result.record.gguf else result.directory),
        "dry_run": dry_run,
        "fetched_bytes": result.fetched_bytes,
        "notes": list(result.notes),
        "plan": None if result.plan is None else result.plan.as_json(),
        **asdict(result.record),
    }


def _list(models: Path, *, as_json: bool) -> int:
    from sterna.hub import pulled_checkpoints

    found = pulled_checkpoints(models)
    if as_json:
        print(json.dumps([
            {"directory": str(p.directory), "model": str(p.model_path), "bytes": p.weight_bytes,
             "record": None if p.record is None else asdict(p.record)}
            for p in found
        ]))  # fmt: skip
        return 0
    for pulled in found:
        origin = (
            f"{pulled.record.repo_id} {(pulled.record.commit or '')[:12]}" if pulled.record else "put there by hand"
        )
        print(f"{pulled.weight_bytes / 1e9:8.2f} GB  {pulled.model_path}  ({origin.strip()})")
    if not found:
        print(f"nothing was pulled into {models}", file=sys.stderr)
    return 0


class ProgressLine:
    """Rate and time left on standard error: one line that changes on a terminal, else a new line now and then."""

    def __init__(self, *, terminal: bool | None = None, interval_s: float | None = None) -> None:
        self._terminal = sys.stderr.isatty() if terminal is None else terminal
        self._interval_s = interval_s or (0.5 if self._terminal else 15.0)
        self._meter: Meter | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> ProgressLine:
        self._thread.start()
        return self

    def show(self, meter: Meter) -> None:
        """Show this transfer from now on."""
        self._meter = meter

    def _run(self) -> None:
        while not self._done.wait(self._interval_s):
            self._print(end="" if self._terminal else "\n")

    def _print(self, *, end: str) -> None:
        if self._meter is not None:
            start = "\r\x1b[K" if self._terminal else ""
            print(start + self._meter.line(), file=sys.stderr, end=end, flush=True)

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        self._thread.join()
        if self._meter is not None:
            self._print(end="\n")
