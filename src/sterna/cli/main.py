"""The ``sterna`` command: one file per subcommand, exit codes, errors in two lines."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

import sterna
from sterna import env
from sterna.errors import SternaError, UsageError

COMMANDS = (
    "code", "chat", "run", "serve", "demo", "eval", "fit", "pull", "quantize", "verify", "bench", "doctor", "logits", "sessions",
    "train",
)  # fmt: skip
EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130

DESCRIPTION = """\
Run Qwen3.6-35B-A3B, or a checkpoint of the same architecture, as a private coding agent on this machine.

exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser with all subcommands; loads none of what they run."""
    parser = argparse.ArgumentParser(
        prog="sterna", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"sterna {sterna.__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in COMMANDS:
        module = importlib.import_module(f"sterna.cli.{name}")
        module.add_parser(subparsers).set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    try:
        env.check()
        args = build_parser().parse_args(argv)
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except SternaError as error:
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # the reader of our output went away; nothing is left to say, not even at interpreter exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
