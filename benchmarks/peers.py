"""Sterna beside llama.cpp and ik_llama.cpp: the same GGUF file, in turns, the machine's bandwidth measured beside every turn.

    python -m benchmarks.peers --peer PYTHON [--layers 8] [--mix Q4_K_M|Q4_0|Q8_0] [--prefill 512,2048] [--decode 0,4096]
        [--rounds 5] [--engines sterna,ik,llama] [--also-recipe q4] [--folder DIR] [--json]

PYTHON is an interpreter with llama-cpp-python and ik-llama-cpp-python, built natively. The file has the official shape with random
weights. All engines stay loaded (memory for each of them is needed) and take turns. Ratios pair turns of the same round; their median
and range are printed; FOLDER/turns.jsonl keeps every turn. --also-recipe measures Sterna's own format of
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
RUNNER = ROOT / "benchmarks" / "peer_runner.py"
READ_BYTES = 1 << 28


@dataclass(frozen=True, slots=True)
class Point:
    """What is measured."""

    kind: str
    tokens: int
    depth: int

    @property
    def label(self) -> str:
        return f"prefill {self.tokens}" if self.kind == "prefill" else f"decode at {self.depth}"


class Worker:
    """One engine in a process of its own that stays loaded and waits for its turn."""

    def __init__(self, command: Sequence[object], log: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        self._log = log
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
                env=environment, cwd=ROOT,
            )  # fmt: skip
        self.load_seconds = float(self._answer()["load_seconds"])

    def measure(self, point: Point) -> dict[str, Any]:
        """Median tokens per second of one turn, and the memory in use."""
        assert self._process.stdin is not None
        request = {"kind": point.kind, "tokens": point.tokens, "depth": point.depth}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        found = self._answer()
        speed = (point.tokens if point.kind == "prefill" else 1) / statistics.median(found["seconds"])
        return {"tok_s": speed, "peak_bytes": found["peak_bytes"]}

    def close(self) -> None:
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"error: an engine ended, see {self._log}\n{self._log.read_text()[-2000:]}")
        found: dict[str, Any] = json.loads(line)
        return found


def workers(args: argparse.Namespace, model: Path, context: int) -> dict[str, Worker]:
    """All engines, loaded one after another."""
    options = ["--context", context, "--threads", args.threads]
    own = [sys.executable, ROOT / "benchmarks" / "sterna_runner.py"]
    commands: dict[str, list[object]] = {}
    for engine in args.engines.split(","):
        commands[engine] = [*own, model] if engine == "sterna" else [args.peer, RUNNER, engine, model]
    if args.also_recipe:
        commands[f"sterna {args.also_recipe}"] = [*own, f"official:{args.layers}:{args.also_recipe}"]
    result = {}
    for engine, command in commands.items():
        result[engine] = Worker([*command, *options], args.folder / f"{engine}.log")
        print(f"loaded {engine} in {result[engine].load_seconds:.1f} s", file=sys.stderr, flush=True)
    return result


def measure(args: argparse.Namespace, engines: dict[str, Worker], points: Sequence[Point]) -> list[dict[str, Any]]:
    """Every engine at every point, round by round; the first round warms up and does not count."""
    turns = []
    for point in points:
        for number in range(-1, args.rounds):
            for engine, worker in engines.items():
                before = measure_roofline(num_threads=args.threads, repeats=3, read_bytes=READ_BYTES)
                result = worker.measure(point)
                after = measure_roofline(num_threads=args.threads, repeats=3, read_bytes=READ_BYTES)
                if number < 0:
                    continue
                bandwidth = (before.read_bytes_per_second + after.read_bytes_per_second) / 2
                peak = (before.products_per_second + after.products_per_second) / 2
                turn = {"round": number, "point": point.label, "engine": engine, "load_average": os.getloadavg()[0]}
                turns.append({**turn, **result, "bandwidth": bandwidth, "peak": peak})
                with (args.folder / "turns.jsonl").open("a") as kept:
                    kept.write(json.dumps(turns[-1]) + "\n")
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
    parser.add_argument("--rounds", type=int, default=5)
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
    context = (
        max(point.depth + (point.tokens + 8) * (args.rounds + 2 if point.kind == "decode" else 1) for point in points)
        + 64
    )
    engines = workers(args, model, context)
    turns = measure(args, engines, points)
    for worker in engines.values():
        worker.close()
    print("\n".join(table(turns, costs, {point.label: point.kind for point in points})))
    if args.json:
        print(json.dumps({"machine": machine, "turns": turns}))


if __name__ == "__main__":
    main()
