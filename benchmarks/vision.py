"""Speed of the vision tower on one image: the official shape with random weights, beside the machine's float peak.

    python benchmarks/vision.py [--height 1024] [--width 1024] [--depth 27] [--threads N] [--backends native torch] [--cpu-time] [--json]

The float peak is what the BLAS of numpy reaches on a 2048 x 2048 x 2048 product with the same number of threads, measured
before and after, the better one. On a busy machine --cpu-time counts the time that the process really had, with one
thread. With --json the last line is the whole result. Weights are random: speed only.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from sterna.backends.native.threads import default_threads
from sterna.checkpoint.random import RandomCheckpoint
from sterna.config import VisionConfig
from sterna.config.presets import preset
from sterna.models.vision import VisionModel


def operations(config: VisionConfig, patches: int) -> int:
    """Floating point operations (a multiply-add is two) of one frame of so many patches."""
    hidden, merged = config.hidden_size, config.hidden_size * config.spatial_merge_size**2
    block = 4 * hidden * hidden + 2 * hidden * config.intermediate_size
    patch = config.in_channels * config.temporal_patch_size * config.patch_size**2
    matmuls = patches * (hidden * patch + config.depth * block)
    matmuls += patches // config.spatial_merge_size**2 * merged * (merged + config.out_hidden_size)
    return 2 * matmuls + 4 * config.depth * patches * patches * hidden


def blas_peak(clock: Callable[[], float], rounds: int = 24) -> float:
    """GFLOP/s of a single-precision product, best of several."""
    n = 2048
    a, b = np.ones((n, n), np.float32), np.ones((n, n), np.float32)
    out, best = np.empty((n, n), np.float32), 0.0
    for _ in range(rounds):
        start = clock()
        np.matmul(a, b, out=out)
        best = max(best, 2 * n**3 / (clock() - start) / 1e9)
    return best


def make_ops(name: str, threads: int) -> Any:
    """The op set of a backend with so many threads."""
    if name == "native":
        from sterna.backends.native.opset import NativeOpSet

        return NativeOpSet(num_threads=threads)
    import torch

    from sterna.backends.torch.opset import TorchOps

    torch.set_num_threads(threads)
    return TorchOps(torch.device("cpu"))


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--height", type=int, default=1024)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--depth", type=int, default=27, help="blocks of the tower")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--backends", nargs="+", default=["native"], choices=("native", "torch"))
    parser.add_argument("--dtype", default="BF16", choices=("BF16", "F16", "F32"), help="storage type of the weights")
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--cpu-time", action="store_true", help="needs --threads 1")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.cpu_time and args.threads != 1:
        sys.exit("--cpu-time needs --threads 1: waiting threads would count too")
    clock = time.process_time if args.cpu_time else time.perf_counter
    if os.environ.get("OPENBLAS_NUM_THREADS", str(args.threads)) != str(args.threads):
        sys.exit("OPENBLAS_NUM_THREADS differs from --threads, the peak would not be comparable")
    config = preset("qwen3.6-35b-a3b")
    assert config.vision is not None
    vision = replace(config.vision, depth=args.depth)
    source = RandomCheckpoint(replace(config, vision=vision), dtype=args.dtype, with_vision=True)
    grid = (1, args.height // vision.patch_size, args.width // vision.patch_size)
    patches = grid[1] * grid[2]
    pixels = np.random.default_rng(0).uniform(-1, 1, (patches, 3 * 2 * 16 * 16)).astype(np.float32)
    gflop = operations(vision, patches) / 1e9
    peak, points = blas_peak(clock), []
    for name in args.backends:
        model = VisionModel(make_ops(name, args.threads), source, vision)
        seconds = []
        for _ in range(args.repeat):
            start = clock()
            features = model.encode(pixels, grid)
            seconds.append(clock() - start)
        assert np.isfinite(features).all()
        points.append(
            {"backend": name, "seconds": min(seconds), "gflop_s": gflop / min(seconds), "tokens": len(features)}
        )
        del model
    peak = max(peak, blas_peak(clock))
    print(
        f"{args.width}x{args.height}, {patches} patches, {gflop:,.0f} GFLOP, peak {peak:.0f} GFLOP/s, {args.threads} threads"
    )
    for point in points:
        point["share_of_peak"] = point["gflop_s"] / peak
        print(
            f"{point['backend']:7} {point['seconds']:.2f} s  {point['gflop_s']:.0f} GFLOP/s  {point['share_of_peak']:.2f} of the peak"
        )
    if args.json:
        print(
            json.dumps(
                {
                    "gflop": gflop,
                    "peak_gflop_s": peak,
                    "threads": args.threads,
                    "cpu_time": args.cpu_time,
                    "points": points,
                }
            )
        )


if __name__ == "__main__":
    main()
