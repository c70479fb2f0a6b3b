"""Roofline, then prefill and decode speed of the native backend on a random model.

    python benchmarks/model.py [--shape sternula|official] [--layers N] [--recipe q4] [--variant NAME] [--threads N]
        [--prefill 512] [--decode 128] [--depth 0] [--profile] [--json]

The last line is the whole result as JSON with --json. Weights are random: speed only, no text. MBU is bytes of weights and
cache that a decoded token needs over what the measured bandwidth moves in that time, MFU likewise for multiply-adds.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import math
import pstats
import statistics
import time
from dataclasses import replace
from typing import Any

import numpy as np

from sterna import _native
from sterna.backends.base import Batch
from sterna.backends.native import NativeBackend
from sterna.backends.native.roofline import measure_roofline
from sterna.checkpoint.quantizing import QuantizingCheckpoint
from sterna.checkpoint.random import RandomCheckpoint
from sterna.checkpoint.random_quantized import RandomQuantizedCheckpoint
from sterna.config import EngineConfig, ModelConfig, RopeParameters, TextConfig, preset

BLOCK_SIZE = 64
WARM_UP = 4


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


def token_bytes(config: TextConfig, checkpoint: Any, depth: int) -> int:
    """Bytes of weights, KV cache and state that one token at a depth reads, the embedding's one row left out."""
    total = 0
    for name in checkpoint.names("text"):
        size = checkpoint.nbytes(name)
        if ".mlp.experts." in name:
            size = size * config.num_experts_per_tok // config.num_experts
        total += 0 if name.endswith("embed_tokens.weight") else size
    linear = config.layer_types.count("linear_attention")
    kv = 2 * 2 * config.num_key_value_heads * config.head_dim * depth * (len(config.layer_types) - linear)
    state = 4 * config.linear_num_value_heads * config.linear_value_head_dim * config.linear_key_head_dim
    return total + kv + 2 * linear * state


def token_products(config: TextConfig, checkpoint: Any) -> int:
    """Multiply-adds with weights of one token of a prefill, the head left out."""
    total = 0
    for name in checkpoint.names("text"):
        shape = checkpoint.shape(name)
        if len(shape) < 2 or name.endswith(("embed_tokens.weight", "lm_head.weight", "conv1d.weight")):
            continue
        share = config.num_experts_per_tok if ".mlp.experts." in name else math.prod(shape[:-2])
        total += share * shape[-2] * shape[-1]
    return total


def timed(backend: NativeBackend, step: Batch) -> float:
    """Seconds of one pass with its logits on the host."""
    start = time.perf_counter()
    backend.forward(step).to_numpy()
    return time.perf_counter() - start


def official_config(layers: int) -> ModelConfig:
    """The official text model cut to so many layers, without the prediction head."""
    config = preset("qwen3.6-35b-a3b")
    types = config.text.layer_types[:layers]
    text = replace(config.text, num_hidden_layers=layers, layer_types=types, mtp_num_hidden_layers=0)
    return ModelConfig(text, None, (0,))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("sternula", "official"), default="sternula")
    parser.add_argument("--layers", type=int, default=8, help="layers of the official shape")
    parser.add_argument("--recipe", default="q4", help="formats of the weights: bf16, q8, q4 or q4-small")
    parser.add_argument("--variant")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--prefill", type=int, default=512, help="tokens per prefill chunk")
    parser.add_argument("--decode", type=int, default=128, help="tokens to decode")
    parser.add_argument("--depth", type=int, default=0, help="tokens in the cache before anything is measured")
    parser.add_argument("--repeats", type=int, default=5, help="prefill chunks that are measured")
    parser.add_argument("--profile", action="store_true", help="profile the decoded tokens")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def prepared(args: argparse.Namespace, config: ModelConfig, checkpoint: Any, total: int) -> tuple[NativeBackend, int]:
    """A loaded backend with blocks for so many tokens, and their number."""
    backend = NativeBackend(variant=args.variant, num_threads=args.threads)
    backend.load(checkpoint, config)
    blocks = -(-total // BLOCK_SIZE)
    engine = EngineConfig(block_size=BLOCK_SIZE, max_num_seqs=1, num_state_slots=1)
    kv = backend.plan_memory(replace(engine, kv_cache_bytes=1 << 40, memory_bytes=1 << 50)).kv_bytes_per_block
    backend.allocate(backend.plan_memory(replace(engine, kv_cache_bytes=kv * blocks)))
    return backend, blocks


def decoded(args: argparse.Namespace, backend: NativeBackend, at: int, ids: np.ndarray, blocks: int) -> float:
    """Median seconds of a decoded token."""
    profile = cProfile.Profile() if args.profile else None
    for i in range(WARM_UP):
        timed(backend, batch(at + i, 1, ids, blocks))
    if profile:
        profile.enable()
    times = [timed(backend, batch(at + WARM_UP + i, 1, ids, blocks)) for i in range(args.decode)]
    if profile:
        profile.disable()
        pstats.Stats(profile).sort_stats("tottime").print_stats(16)
    return statistics.median(times)


def main() -> None:
    args = arguments()
    roof = measure_roofline(variant=args.variant, num_threads=args.threads)
    config = sternula_config() if args.shape == "sternula" else official_config(args.layers)
    if args.recipe == "bf16":
        checkpoint: Any = QuantizingCheckpoint(RandomCheckpoint(config), args.recipe)
    else:
        checkpoint = RandomQuantizedCheckpoint(config, args.recipe)
    total = args.depth + args.repeats * args.prefill + args.decode + WARM_UP
    backend, blocks = prepared(args, config, checkpoint, total)
    ids = np.random.default_rng(0).integers(0, config.text.vocab_size, total).astype(np.int32)
    at = 0
    while at < args.depth:
        timed(backend, batch(at, min(512, args.depth - at), ids, blocks))
        at += min(512, args.depth - at)
    decode = decoded(args, backend, at, ids, blocks)
    at += args.decode + WARM_UP
    prefill = []
    for _ in range(args.repeats):
        prefill.append(timed(backend, batch(at, args.prefill, ids, blocks)))
        at += args.prefill
    again = measure_roofline(variant=args.variant, num_threads=args.threads)
    bandwidth = (roof.read_bytes_per_second + again.read_bytes_per_second) / 2
    peak = (roof.products_per_second + again.products_per_second) / 2
    seconds = statistics.median(prefill)
    result = {
        "variant": backend.variant(),
        "threads": _native.num_threads(),
        "recipe": args.recipe,
        "depth": args.depth,
        "bandwidth_gb_s": round(bandwidth / 1e9, 2),
        "peak_gmac_s": round(peak / 1e9, 1),
        "decode_tok_s": round(1 / decode, 2),
        "mbu": round(token_bytes(config.text, checkpoint, args.depth) / decode / bandwidth, 3),
        "prefill_tokens": args.prefill,
        "prefill_tok_s": round(args.prefill / seconds, 1),
        "mfu": round(args.prefill * token_products(config.text, checkpoint) / seconds / peak, 3) if peak else None,
    }
    if args.json:
        print(json.dumps(result))
    else:
        print(", ".join(f"{key} {value}" for key, value in result.items()))


if __name__ == "__main__":
    main()
