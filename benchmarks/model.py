"""Prefill and decode speed of the native backend on a random model of Sternula's shape.

    python benchmarks/model.py [--variant NAME] [--threads N] [--prefill 512] [--decode 128] [--depth 0] [--json]

The last line is the whole result as JSON with --json. Weights are random: speed only, no text.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import numpy as np

from sterna import _native
from sterna.backends.base import Batch
from sterna.backends.native import NativeBackend
from sterna.checkpoint.random import RandomCheckpoint
from sterna.config import EngineConfig, ModelConfig, RopeParameters, TextConfig

BLOCK_SIZE = 64


def sternula_config() -> ModelConfig:
    """Dimensions of the built-in model."""
    text = TextConfig(
        vocab_size=4096,
        hidden_size=256,
        num_hidden_layers=8,
        layer_types=("linear_attention",) * 3 + ("full_attention",) + ("linear_attention",) * 3 + ("full_attention",),
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        linear_conv_kernel_dim=4,
        linear_key_head_dim=64,
        linear_value_head_dim=64,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        num_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=128,
        shared_expert_intermediate_size=128,
        rms_norm_eps=1e-6,
        max_position_embeddings=262144,
        rope_parameters=RopeParameters(1e7, 0.25, (3, 3, 2)),
    )
    return ModelConfig(text, None, (0,))


def batch(start: int, count: int, ids: np.ndarray, blocks: int) -> Batch:
    """Rows start … start + count of the one sequence, which owns all blocks in order."""
    rows = np.arange(start, start + count, dtype=np.int32)
    return Batch(
        token_ids=ids[rows],
        positions=np.tile(rows, (3, 1)),
        cu_seqlens=np.array([0, count], np.int32),
        context_lens=np.array([start], np.int32),
        block_tables=np.arange(blocks, dtype=np.int32)[None],
        slot_mapping=rows,
        state_slots=np.zeros(1, np.int32),
        logits_indices=np.array([count - 1], np.int32),
    )


def timed(backend: NativeBackend, step: Batch) -> float:
    """Seconds of one pass with its logits on the host."""
    start = time.perf_counter()
    backend.forward(step).to_numpy()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--prefill", type=int, default=512, help="tokens per prefill chunk")
    parser.add_argument("--decode", type=int, default=128, help="tokens to decode")
    parser.add_argument("--depth", type=int, default=0, help="tokens in the cache before anything is measured")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    backend = NativeBackend(variant=args.variant, num_threads=args.threads)
    config = sternula_config()
    backend.load(RandomCheckpoint(config), config)
    repeats = 5
    total = args.depth + repeats * args.prefill + args.decode + 8
    blocks = -(-total // BLOCK_SIZE)
    kv = backend.plan_memory(EngineConfig(block_size=BLOCK_SIZE)).kv_bytes_per_block
    backend.allocate(backend.plan_memory(EngineConfig(block_size=BLOCK_SIZE, kv_cache_bytes=kv * blocks)))
    ids = np.random.default_rng(0).integers(0, config.text.vocab_size, total).astype(np.int32)
    at = 0
    while at < args.depth:
        timed(backend, batch(at, min(512, args.depth - at), ids, blocks))
        at += min(512, args.depth - at)
    prefill = []
    for _ in range(repeats):
        prefill.append(args.prefill / timed(backend, batch(at, args.prefill, ids, blocks)))
        at += args.prefill
    decode = [1 / timed(backend, batch(at + i, 1, ids, blocks)) for i in range(args.decode + 8)][8:]
    result = {
        "variant": backend.variant(),
        "threads": _native.num_threads(),
        "depth": args.depth,
        "prefill_tokens": args.prefill,
        "prefill_tok_s": round(statistics.median(prefill)),
        "decode_tok_s": round(statistics.median(decode)),
    }
    if args.json:
        print(json.dumps(result))
    else:
        print(", ".join(f"{key} {value}" for key, value in result.items()))


if __name__ == "__main__":
    main()
