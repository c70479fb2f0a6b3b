"""``sterna train sternula``: data, tokenizer, training and export, from an empty directory to a checkpoint."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from sterna.errors import UsageError

STEPS = ("data", "train", "export")
SETTING_HELP = {
    "seed": "seed of the weights and of the order of the data",
    "hours": "length of the training in hours of training time",
    "tokens": "length of the training in tokens",
    "tokens_per_step": "tokens of one optimizer step",
    "micro_tokens": "tokens computed at once, padding included",
    "max_length": "longer episodes are cut here",
    "learning_rate": "highest learning rate",
    "optimizer": "muon (matrices; AdamW for the rest) or adamw",
    "warmup_steps": "steps until the highest learning rate",
    "decay_fraction": "last part of the training in which the learning rate falls to 0",
    "weight_decay": "decoupled weight decay of matrices",
    "clip_norm": "largest gradient norm",
    "balance_weight": "weight of the router balance loss",
    "mtp_weight": "weight of the multi-token-prediction loss",
    "mtp_every": "train the multi-token-prediction head on every so many steps",
    "threads": "CPU threads",
    "checkpoint_every_s": "seconds between checkpoints",
    "evaluate_every_s": "seconds between held-out evaluations",
    "evaluate_episodes": "held-out episodes per evaluation",
}

INTEGERS = {
    "seed", "tokens", "tokens_per_step", "micro_tokens", "max_length", "warmup_steps", "mtp_every", "threads",
    "evaluate_episodes",
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``sterna train``; imports neither torch nor the data generator."""
    parser.add_argument("model", choices=["sternula"], help="what to train")
    parser.add_argument("--out", type=Path, required=True, help="directory of everything: data, run, checkpoint")
    parser.add_argument("--data", type=Path, help="directory of shards (default: OUT/data)")
    parser.add_argument(
        "--tokenizer", type=Path, help="directory of tokenizer and template (default: that of the shards)"
    )
    parser.add_argument(
        "--steps", default=",".join(STEPS), help="steps to do, of data,train,export (default: all of them)"
    )
    parser.add_argument(
        "--start-from", type=Path, metavar="FILE", help="checkpoint.pt of another run to continue under a new schedule"
    )
    parser.add_argument("--data-episodes", type=int, default=50_000, help="episodes that the data step generates")
    parser.add_argument("--json", action="store_true", help="the last line of standard output is the result as JSON")
    for name, help_text in SETTING_HELP.items():
        flag = "--" + name.replace("_", "-").removesuffix("-s")
        if name == "optimizer":
            parser.add_argument(flag, choices=["muon", "adamw"], dest=name, default=None, help=help_text)
        else:
            integer = name in INTEGERS
            parser.add_argument(flag, type=int if integer else float, dest=name, default=None, help=help_text)


def run(args: argparse.Namespace) -> int:
    """Do the wanted steps in order; each may be interrupted and repeated. Returns the exit code."""
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise UsageError("training needs torch", hint="pip install 'sterna[train]'") from error
    steps = [step for step in args.steps.split(",") if step]
    if unknown := [step for step in steps if step not in STEPS]:
        raise UsageError(f"unknown steps {unknown}, allowed are {list(STEPS)}")
    data, tokenizer = args.data or args.out / "data", args.tokenizer or args.data or args.out / "data"
    result: dict[str, Any] = {"out": str(args.out)}
    if "data" in steps:
        _write_data(args, data=data)
    if "train" in steps:
        finished = _train(args, data=data, tokenizer=tokenizer)
        result["finished"] = finished
        if not finished:
            print("stopped; the same command continues", file=sys.stderr)
    if "export" in steps and result.get("finished", True):
        result |= _export(args, data=data, tokenizer=tokenizer)
    if args.json:
        print(json.dumps(result))
    return 0


def _write_data(args: argparse.Namespace, *, data: Path) -> None:
    from sterna.train.sternula import build_data

    build_data.build(data, episodes=args.data_episodes, seed=args.seed or 0, workers=args.threads or 2)


def _trainer(args: argparse.Namespace, *, data: Path, tokenizer: Path) -> Any:
    from sterna.train.loop import Trainer, TrainSettings
    from sterna.train.shape import ModelShape
    from sterna.train.validation import Vocabulary

    chosen = {f.name: value for f in fields(TrainSettings) if (value := getattr(args, f.name)) is not None}
    return Trainer(
        data=data,
        out=args.out / "run",
        shape=ModelShape(),
        settings=TrainSettings(**chosen),
        start_from=args.start_from,
        vocabulary=Vocabulary.load(tokenizer / "tokenizer.json"),
    )


def _train(args: argparse.Namespace, *, data: Path, tokenizer: Path) -> bool:
    from sterna.train.curves import draw_curves

    trainer = _trainer(args, data=data, tokenizer=tokenizer)
    finished: bool = trainer.run()
    print(file=sys.stderr)
    draw_curves(trainer.metrics_path, args.out / "run" / "curves.png")
    return finished


def _export(args: argparse.Namespace, *, data: Path, tokenizer: Path) -> dict[str, Any]:
    from sterna.train.export import export_from_run

    checkpoint = args.out / "checkpoint"
    result = export_from_run(
        args.out / "run", data=data, tokenizer_dir=tokenizer, out=checkpoint, threads=args.threads or 2
    )
    print(f"{checkpoint}: {result['bytes']:,} bytes; held out, rounded to BF16: {result['held_out']}", file=sys.stderr)
    return result
