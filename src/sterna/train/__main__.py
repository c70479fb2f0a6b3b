"""``python -m sterna.train sternula …``: the same as ``sterna train sternula …``."""

from __future__ import annotations

import argparse
import sys

from sterna.errors import SternaError, UsageError
from sterna.train.command import add_arguments, run


def main() -> int:
    """Parse the arguments and run; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m sterna.train", description="Train Sternula from scratch.")
    add_arguments(parser)
    try:
        return run(parser.parse_args())
    except SternaError as error:
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1


if __name__ == "__main__":
    sys.exit(main())
