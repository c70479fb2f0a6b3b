"""``sterna fit``: what of a model fits into how much memory, by exact arithmetic and without loading anything."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sterna.accounting import KV_FORMATS, bytes_report, count_parameters
from sterna.config import PRESETS, EngineConfig, ModelConfig, preset, read_model_config
from sterna.errors import UsageError

if TYPE_CHECKING:
    from sterna.fit import Hardware, Plan

GIB = 1 << 30
DEFAULT_CONTEXTS = (32_768, 131_072, 262_144)
EPILOG = """\
bytes are exact on one device; on several they are those of the fullest one under tensor parallelism.
examples:
  sterna fit                                   what fits here, now
  sterna fit --hardware rtx4090                what would fit on a 24 GB card
  sterna fit --hardware 2x24g --sessions 4     two cards, four conversations at once
  sterna fit --announcement                    the announcement's table, row by row
"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Declare the command."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "fit",
        help="what fits on this machine, or on another",
        description="Count parameters and bytes of a model, and say which precision, context and number of sessions "
        "fit into memory. Nothing is downloaded or loaded.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--model", type=Path, metavar="DIR", help="a checkpoint directory; only config.json is read")
    source.add_argument("--preset", choices=PRESETS, help=f"a published model (default: {PRESETS[0]})")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--hardware", metavar="NAME", help="rtx4090, a100-40g, h100-80g, 16g, 2x24g, ram:64g, ...; `list` names all"
    )
    where.add_argument("--memory", type=float, metavar="GIB", help="memory to plan for (default: free memory now)")
    parser.add_argument(
        "--precision", action="append", metavar="NAME", help="only this one; may be given several times"
    )
    parser.add_argument(
        "--context", type=int, action="append", metavar="N", help="tokens per session; may be given several times"
    )
    parser.add_argument("--sessions", type=int, default=1, metavar="N", help="sessions at once (default: 1)")
    parser.add_argument("--no-mtp", action="store_true", help="without the multi-token prediction head")
    parser.add_argument("--vision", action="store_true", help="with the vision tower")
    parser.add_argument("--no-snapshots", action="store_true", help="without memory for snapshots of past turns")
    parser.add_argument("--announcement", action="store_true", help="recompute the announcement's table instead")
    parser.add_argument("--json", action="store_true", help="last line of standard output: the whole result as JSON")
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    if args.announcement:
        return _announcement(args)
    if args.hardware == "list":
        return _list_hardware(args)
    config = read_model_config(args.model) if args.model else preset(args.preset or PRESETS[0])
    hardware = _hardware(args)
    contexts = args.context or [n for n in DEFAULT_CONTEXTS if n <= config.text.max_position_embeddings]
    contexts = contexts or [config.text.max_position_embeddings]
    _check(config, contexts, args.sessions)
    plans, left_out = _plans(args, config, hardware, contexts)
    parameters = count_parameters(config)
    result = {
        "parameters": {**asdict(parameters), "total": parameters.total, "active": parameters.active},
        "bytes": {**bytes_report(config), "available": hardware.total_usable_bytes},
        "hardware": asdict(hardware),
        "left_out": left_out,
        "plans": [plan.as_json() for plan in plans],
    }
    print(json.dumps(result) if args.json else _table(result, plans, hardware, contexts))
    return 0


def _hardware(args: argparse.Namespace) -> Hardware:
    from sterna.fit import find_hardware, this_machine

    if args.hardware:
        return find_hardware(args.hardware)
    if args.memory is None:
        return this_machine()
    if not 0 < args.memory < 1e6:
        raise UsageError(f"--memory is {args.memory:g} GiB, allowed is above 0")
    return this_machine(int(args.memory * GIB))


def _check(config: ModelConfig, contexts: list[int], sessions: int) -> None:
    for name, value in [("--sessions", sessions), *(("--context", n) for n in contexts)]:
        if value < 1:
            raise UsageError(f"{name} is {value}, allowed is 1 or more")
    longest = config.text.max_position_embeddings
    for context in contexts:
        if context > longest:
            raise UsageError(
                f"--context is {context}, allowed is up to {longest}, the model's own",
                hint="a longer context needs YaRN parameters in config.json: plan with --model on such a copy",
            )


def _plans(
    args: argparse.Namespace, config: ModelConfig, hardware: Hardware, contexts: list[int]
) -> tuple[list[Plan], dict[str, str]]:
    """All combinations, and the precisions that this model's shapes do not allow, with the reason."""
    from sterna.fit import PRECISIONS, make_plan, stored_bytes

    engine = EngineConfig(snapshot_bytes=0) if args.no_snapshots else EngineConfig()
    plans: list[Plan] = []
    left_out: dict[str, str] = {}
    for weights in args.precision or PRECISIONS:
        try:
            stored_bytes(config, weights)
        except UsageError as error:
            if args.precision:
                raise
            left_out[weights] = error.message
            continue
        plans += [
            make_plan(
                config, hardware, weights=weights, kv=kv, context=context, sessions=args.sessions,
                mtp=not args.no_mtp, vision=args.vision, engine=engine,
            )
            for kv in KV_FORMATS
            for context in contexts
        ]  # fmt: skip
    return plans, left_out


def _table(result: dict[str, Any], plans: list[Plan], hardware: Hardware, contexts: list[int]) -> str:
    counts = result["parameters"]
    usable = "unknown" if hardware.usable_bytes is None else f"{hardware.usable_bytes / GIB:.1f} GiB"
    each = " each" if hardware.devices > 1 else ""
    lines = [
        f"parameters  {counts['total']:,} in all, {counts['active']:,} active per token",
        f"memory      {usable} usable{each}: {hardware.name}",
    ]
    if obstacle := plans[0].obstacle if plans else None:
        lines.append(f"not possible: {obstacle}")
    columns = "".join(f"{f'x {n:,}':>12}" for n in contexts)
    lines += [
        "",
        f"{'':>10}{'':>6}{'GiB of':>9}{'KV bytes':>10}{'MiB of':>9}{'MiB of':>10}{'longest':>12}  most sessions of",
        f"{'weights':>10}{'kv':>6}{'weights':>9}{'per token':>10}{'state':>9}{'workspace':>10}{'context':>12}{columns}",
    ]
    for start in range(0, len(plans), len(contexts)):
        lines.append(_row(plans[start : start + len(contexts)]))
    lines += [f"{name}: {reason}" for name, reason in result["left_out"].items()]
    return "\n".join(lines)


def _row(group: list[Plan]) -> str:
    """One precision and KV type over all contexts."""
    plan, mib = group[0], 1 << 20
    longest = "?" if plan.max_context is None else f"{plan.max_context:,}"
    most = "".join(f"{'?' if each.max_sessions is None else each.max_sessions:>12}" for each in group)
    return (
        f"{plan.weights:>10}{plan.kv:>6}{plan.bytes['weights'] / GIB:>9.2f}{plan.kv_bytes_per_token:>10,}"
        f"{plan.bytes['state'] / mib:>9.1f}{plan.bytes['workspace'] / mib:>10.1f}{longest:>12}{most}"
    )


def _announcement(args: argparse.Namespace) -> int:
    from sterna.fit.announcement import announcement_rows

    rows = announcement_rows()
    if args.json:
        print(json.dumps({"rows": [row.as_json() for row in rows]}))
        return 0
    for row in rows:
        print(f"{row.verdict.upper()}: {row.claim}")
        for part in row.answer.split("; "):
            print(f"    {part}")
    return 0


def _list_hardware(args: argparse.Namespace) -> int:
    from sterna.fit import find_hardware, hardware_names

    machines = [find_hardware(name) for name in hardware_names()]
    if args.json:
        print(json.dumps([asdict(machine) for machine in machines]))
        return 0
    for machine in machines:
        print(f"{machine.key:<10} {(machine.usable_bytes or 0) / GIB:6.1f} GiB usable  {machine.name}")
    print("and sizes: 16g, 2x24g, ram:64g")
    return 0
