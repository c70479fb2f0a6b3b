"""``sterna fit``: what of a model fits into how much memory, by exact arithmetic and without loading anything."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sterna.accounting import (
    KV_FORMATS,
    WEIGHT_FORMATS,
    bytes_report,
    count_parameters,
    kv_bytes_per_token,
    state_bytes,
    weight_bytes,
)
from sterna.backends.host_memory import available_host_bytes
from sterna.backends.planner import workspace_bytes
from sterna.config import PRESETS, EngineConfig, ModelConfig, preset, read_model_config
from sterna.errors import UsageError

GIB = 1 << 30
DEFAULT_CONTEXTS = (32_768, 131_072, 262_144)


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Declare the command."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "fit",
        help="what fits on this machine",
        description="Count parameters and bytes of a model, and say which precision, context and number of sessions "
        "fit into memory. Nothing is downloaded or loaded.",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--model", type=Path, metavar="DIR", help="a checkpoint directory; only config.json is read")
    source.add_argument("--preset", choices=PRESETS, help=f"a published model (default: {PRESETS[0]})")
    parser.add_argument("--memory", type=float, metavar="GIB", help="memory to plan for (default: free memory now)")
    parser.add_argument(
        "--context", type=int, action="append", metavar="N", help="tokens per session; may be given several times"
    )
    parser.add_argument("--sessions", type=int, default=1, metavar="N", help="sessions at once (default: 1)")
    parser.add_argument("--no-mtp", action="store_true", help="without the multi-token prediction head")
    parser.add_argument("--json", action="store_true", help="last line of standard output: the whole result as JSON")
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    config = read_model_config(args.model) if args.model else preset(args.preset or PRESETS[0])
    memory = _memory_bytes(args.memory)
    contexts = args.context or [n for n in DEFAULT_CONTEXTS if n <= config.text.max_position_embeddings]
    contexts = contexts or [config.text.max_position_embeddings]
    for name, value in [("--sessions", args.sessions), *(("--context", n) for n in contexts)]:
        if value < 1:
            raise UsageError(f"{name} is {value}, allowed is 1 or more")
    parameters = count_parameters(config)
    plans = [
        plan(
            config, weights=weights, kv=kv, context=context, sessions=args.sessions, memory=memory, mtp=not args.no_mtp
        )
        for weights in WEIGHT_FORMATS
        for kv in KV_FORMATS
        for context in contexts
    ]
    result = {
        "parameters": {**asdict(parameters), "total": parameters.total, "active": parameters.active},
        "bytes": {**bytes_report(config), "available": memory},
        "plans": plans,
    }
    print(json.dumps(result) if args.json else _table(result))
    return 0


def plan(
    config: ModelConfig, *, weights: str, kv: str, context: int, sessions: int, memory: int | None, mtp: bool
) -> dict[str, Any]:
    """Bytes of one combination, whether it fits, and the longest context per session that would."""
    text, counts = config.text, count_parameters(config)
    mtp = mtp and text.mtp_num_hidden_layers > 0
    state = state_bytes(text)
    parts = {
        "weights": weight_bytes(counts.text + (counts.mtp if mtp else 0), weights),
        "kv": sessions * context * kv_bytes_per_token(text, kv, mtp=mtp),
        "state": sessions * (state["recurrent"] + state["conv_float32"]),
        "workspace": workspace_bytes(text, EngineConfig(max_num_seqs=sessions)),
    }
    total = sum(parts.values())
    result = {"weights": weights, "kv": kv, "context": context, "sessions": sessions, "mtp": mtp, "bytes": parts}
    result |= {"total_bytes": total, "fits": None, "max_context": None}
    if memory is not None:
        room = memory - (total - parts["kv"])
        longest = max(0, room) // (sessions * kv_bytes_per_token(text, kv, mtp=mtp))
        result |= {"fits": total <= memory, "max_context": min(longest, text.max_position_embeddings)}
    return result


def _memory_bytes(gib: float | None) -> int | None:
    if gib is None:
        return available_host_bytes()
    if not 0 < gib < 1e6:
        raise UsageError(f"--memory is {gib:g} GiB, allowed is above 0")
    return int(gib * GIB)


def _table(result: dict[str, Any]) -> str:
    counts, available = result["parameters"], result["bytes"]["available"]
    memory = "unknown" if available is None else f"{available / GIB:.1f} GiB"
    lines = [
        f"parameters  {counts['total']:,} in all, {counts['active']:,} active per token",
        f"memory      {memory}",
        "",
        f"{'weights':>8} {'kv':>5} {'context':>9} {'sessions':>8} {'total GiB':>10}  "
        f"{'fits':<4} {'longest context':>15}",
    ]
    for each in result["plans"]:
        fits = {None: "?", True: "yes", False: "no"}[each["fits"]]
        longest = "?" if each["max_context"] is None else f"{each['max_context']:,}"
        lines.append(
            f"{each['weights']:>8} {each['kv']:>5} {each['context']:>9,} {each['sessions']:>8} "
            f"{each['total_bytes'] / GIB:>10.2f}  {fits:<4} {longest:>15}"
        )
    return "\n".join(lines)
