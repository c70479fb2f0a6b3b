"""Sterna behind the protocol of `benchmarks/peer_runner.py`, kept loaded; started by `benchmarks/peers.py`.

python benchmarks/sterna_runner.py MODEL.gguf|official:LAYERS:RECIPE --context N --threads T
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from sterna.backends.native import NativeBackend
from sterna.bench.machine import resident_bytes
from sterna.bench.points import PointPlan, PointRunner
from sterna.bench.roofline import Roofline
from sterna.checkpoint.opening import open_checkpoint
from sterna.checkpoint.random_quantized import RandomQuantizedCheckpoint
from sterna.cli.bench import cut
from sterna.config import ModelConfig, preset

CHUNK = 2048


def opened(model: str) -> tuple[Any, ModelConfig]:
    """The GGUF file, or random weights of the official shape in a recipe."""
    if not model.startswith("official:"):
        return open_checkpoint(Path(model), quantized=True)
    _, layers, recipe = model.split(":")
    config = cut(preset("qwen3.6-35b-a3b"), int(layers))
    return RandomQuantizedCheckpoint(config, recipe), config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--context", type=int, required=True)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    start = time.perf_counter()
    checkpoint, config = opened(args.model)
    backend = NativeBackend(num_threads=args.threads)
    backend.load(checkpoint, config)
    plan = PointPlan((), 0, (args.context,), 0, 1, CHUNK)
    # The limits are measured by the caller, between the turns of all engines.
    runner = PointRunner(backend, checkpoint, config, plan, limits=lambda: Roofline(1.0, None, "none"))
    print(json.dumps({"load_seconds": time.perf_counter() - start}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        depth, tokens = request["depth"], request["tokens"]
        if request["kind"] == "prefill":
            seconds = [runner.prefill_seconds(depth, tokens)]
        else:
            seconds = runner.decode_seconds(depth, tokens)
        print(json.dumps({"seconds": seconds, "peak_bytes": resident_bytes()}), flush=True)


if __name__ == "__main__":
    main()
