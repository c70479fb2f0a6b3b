"""``sterna train``: train, fine-tune. Needs the extra ``train``."""

from __future__ import annotations

import argparse

from sterna.cli.common import Subparsers
from sterna.train import command


def add_parser(subparsers: Subparsers) -> argparse.ArgumentParser:
    """Declare the command."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "train",
        help="train Sternula from an empty directory to a checkpoint",
        description="Train the small model. May be interrupted at any moment; the same command goes on. Needs torch: "
        "pip install 'sterna[train]'.",
    )
    command.add_arguments(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    return command.run(args)
