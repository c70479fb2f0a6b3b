"""Sterna beside llama.cpp and ik_llama.cpp: the same GGUF file, in turns, the machine's bandwidth measured beside every turn.

    python -m benchmarks.peers --peer PYTHON [--layers 8] [--mix Q4_K_M|Q4_0|Q8_0] [--prefill 512,2048] [--decode 0,4096]
        [--rounds 3] [--engines sterna,ik,llama] [--also-recipe q4] [--folder DIR] [--json]

PYTHON is an interpreter with llama-cpp-python and ik-llama-cpp-python, built natively. The file has the official shape with random
weights. Ratios pair turns of the same round; their median and range are printed. --also-recipe measures Sterna's own format of
the same shape as well. A busy machine is said and not corrected for: engines that wait in a loop suffer most from it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.random_gguf import MIXES, official, write_random

from sterna.backends.native.roofline import measure_roofline
from sterna.bench.cost import TokenCost, token_cost
from sterna.bench.machine import describe_machine
from sterna.checkpoint.opening import open_checkpoint

ROOT = Path(__file__).resolve().parents[1]
CHUNK = 2048


@dataclass(frozen=True, slots=True)
class Point:
    """What is measured."""

    kind: str
    tokens: int
    depth: int

    @property
    def label(self) -> str:
        return f"prefill {self.tokens}" if self.kind == "prefill" else f"decode at {self.depth}"


def run(command: Sequence[object]) -> dict[str, Any]:
    """The JSON on the last line of a command's output."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"error: {command[2]} failed\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def peer(args: argparse.Namespace, engine: str, model: Path, point: Point) -> dict[str, Any]:
    """Tokens per second of one of the peers."""
    command: list[object] = [args.peer, ROOT / "benchmarks" / "peer_runner.py", engine, model, point.kind]
    command += ["--tokens", point.tokens, "--depth", point.depth, "--repeats", args.repeats, "--threads", args.threads]
    found = run(command)
    seconds = statistics.median(found["seconds"])
    speed = (point.tokens if point.kind == "prefill" else 1) / seconds
    return {"tok_s": speed, "load_seconds": found["load_seconds"], "peak_bytes": found["peak_bytes"]}


def sterna(args: argparse.Namespace, source: Sequence[object], point: Point) -> dict[str, Any]:
    """The same of Sterna, through its own command."""
    command: list[object] = [sys.executable, "-m", "sterna.cli.main", "bench", *source, "--backend", "native", "--json"]
    command += ["--threads", args.threads, "--repeat", args.repeats, "--chunk", CHUNK]
    if point.kind == "prefill":
        command += ["--prefill", point.tokens, "--prefill-depth", point.depth, "--decode-depth", ""]
    else:
        command += ["--prefill", "", "--decode-depth", point.depth, "--decode-tokens", point.tokens]
    found = run(command)
    measured = found["points"][0]
    speed = measured.get("prefill_tok_s", measured.get("decode_tok_s"))
    return {"tok_s": speed, "load_seconds": found["load_seconds"], "peak_bytes": found["peak_memory_bytes"]}


def measure(args: argparse.Namespace, model: Path, points: Sequence[Point]) -> list[dict[str, Any]]:
    """Every engine at every point, round by round."""
    turns = []
    own = ["--preset", "qwen3.6-35b-a3b", "--weights", "random", "--layers", args.layers, "--recipe", args.also_recipe]
    engines = [*args.engines.split(","), *([f"sterna {args.also_recipe}"] if args.also_recipe else [])]
    for number in range(args.rounds):
        for point in points:
            for engine in engines:
                before = measure_roofline(num_threads=args.threads, repeats=3)
                if engine in ("llama", "ik"):
                    result = peer(args, engine, model, point)
                else:
                    result = sterna(args, ["--model", model] if engine == "sterna" else own, point)
                after = measure_roofline(num_threads=args.threads, repeats=3)
                bandwidth = (before.read_bytes_per_second + after.read_bytes_per_second) / 2
                peak = (before.products_per_second + after.products_per_second) / 2
                turn = {"round": number, "point": point.label, "engine": engine, "load_average": os.getloadavg()[0]}
                turns.append({**turn, **result, "bandwidth": bandwidth, "peak": peak})
                print(
                    f"round {number + 1}  {point.label:<15} {engine:<12} {result['tok_s']:9.2f} tok/s  "
                    f"beside {bandwidth / 1e9:5.1f} GB/s, {2 * peak / 1e9:6.0f} GOP/s, load {os.getloadavg()[0]:.1f}",
                    file=sys.stderr,
                    flush=True,
                )
    return turns


def table(turns: list[dict[str, Any]], costs: dict[str, TokenCost], kinds: dict[str, str]) -> list[str]:
    """Markdown: median speed of each engine, share of the limit beside it, and ratios paired by round."""
    engines = list(dict.fromkeys(turn["engine"] for turn in turns))
    lines = ["| point | engine | tok/s, median (range) | of the limit | GB/s beside | Sterna / this, median (range) |"]
    lines.append("|---|---|---:|---:|---:|---:|")
    for label in dict.fromkeys(turn["point"] for turn in turns):
        here = [turn for turn in turns if turn["point"] == label]
        base = {turn["round"]: turn["tok_s"] for turn in here if turn["engine"] == "sterna"}
        for engine in engines:
            mine = [turn for turn in here if turn["engine"] == engine]
            speeds = [turn["tok_s"] for turn in mine]
            ratios = [base[turn["round"]] / turn["tok_s"] for turn in mine if turn["round"] in base]
            ratio = "" if engine.startswith("sterna") or not ratios else spread(ratios, 2)
            # The limit of another format is another one.
            shares = [share(turn, costs[label], kinds[label]) for turn in mine] if " " not in engine else []
            limit = f"{statistics.median(shares):.2f}" if shares and all(shares) else ""
            beside = spread([turn["bandwidth"] / 1e9 for turn in mine], 1)
            lines.append(f"| {label} | {engine} | {spread(speeds, 2)} | {limit} | {beside} | {ratio} |")
    return lines


def share(turn: dict[str, Any], cost: TokenCost, kind: str) -> float:
    """MBU of a decoded token, MFU of a prefill."""
    if kind == "decode":
        return float(turn["tok_s"] * cost.bytes / turn["bandwidth"])
    return float(turn["tok_s"] * cost.prefill_products / turn["peak"]) if turn["peak"] else 0.0


def spread(values: Sequence[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, required=True, metavar="PYTHON")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--mix", choices=tuple(MIXES), default="Q4_K_M")
    parser.add_argument("--prefill", type=numbers, default=[512, 2048])
    parser.add_argument("--decode", type=numbers, default=[0, 4096])
    parser.add_argument("--decode-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--engines", default="sterna,ik,llama")
    parser.add_argument("--also-recipe", default="")
    parser.add_argument("--folder", type=Path, default=Path("build/peers"))
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    model = args.folder / f"{args.mix}-{args.layers}.gguf"
    write_random(model, layers=args.layers, mix=args.mix)
    points = [Point("decode", args.decode_tokens, depth) for depth in args.decode]
    points += [Point("prefill", tokens, 0) for tokens in args.prefill]
    checkpoint, _ = open_checkpoint(model, quantized=True)
    config = official(args.layers)
    # A prefill's middle token stands for all of them.
    middle = {point.label: point.depth + (point.tokens // 2 if point.kind == "prefill" else 0) for point in points}
    costs = {label: token_cost(config, checkpoint, depth) for label, depth in middle.items()}
    machine = describe_machine()
    print(
        f"{machine['processor']}, {args.threads} threads, {args.layers} layers, {args.mix}, {model.stat().st_size:,} bytes"
    )
    turns = measure(args, model, points)
    print("\n".join(table(turns, costs, {point.label: point.kind for point in points})))
    if args.json:
        print(json.dumps({"machine": machine, "turns": turns}))


if __name__ == "__main__":
    main()
