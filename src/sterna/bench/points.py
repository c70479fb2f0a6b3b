"""Prefill and decode speed of a loaded backend at given depths, the machine's limits measured beside every point."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sterna.backends.base import Backend, Batch
from sterna.bench.cost import SizedCheckpoint, prefill_products, token_cost
from sterna.bench.machine import resident_bytes
from sterna.bench.roofline import Roofline
from sterna.config import EngineConfig, ModelConfig

BLOCK_SIZE = 64
WARM_UP_TOKENS = 4
SLOT, SPARE_SLOT = 0, 1


@dataclass(frozen=True, slots=True)
class PointPlan:
    """What to measure: prefills of these lengths and decoding at these depths, each so often."""

    prefill: tuple[int, ...]
    prefill_depth: int
    decode_depths: tuple[int, ...]
    decode_tokens: int
    repeats: int
    chunk: int

    @property
    def longest(self) -> int:
        """Tokens that the cache must hold."""
        prefill = self.prefill_depth + max(self.prefill, default=0)
        decode = max(self.decode_depths, default=0) + WARM_UP_TOKENS + self.decode_tokens
        return max(prefill, decode, BLOCK_SIZE) + BLOCK_SIZE


class PointRunner:
    """One sequence on a backend whose cache was filled by one real block, copied to all others.

    So any depth is there at once, every byte of it is real memory, and the state is that of a short real prompt. Speed does not
    depend on the values.
    """

    def __init__(
        self,
        backend: Backend,
        checkpoint: SizedCheckpoint,
        config: ModelConfig,
        plan: PointPlan,
        *,
        limits: Callable[[], Roofline],
    ) -> None:
        self.backend, self.checkpoint, self.config, self.plan, self.limits = backend, checkpoint, config, plan, limits
        # The largest resident size after a measurement; what the limits take is gone by then.
        self.peak_memory_bytes = 0
        self.blocks = -(-plan.longest // BLOCK_SIZE)
        self.ids = np.random.default_rng(0).integers(0, config.text.vocab_size, plan.longest).astype(np.int32)
        backend.allocate(_memory(backend, self.blocks, plan.chunk))
        self._pass(0, BLOCK_SIZE)
        backend.copy_blocks([(0, block) for block in range(1, self.blocks)])
        backend.copy_state(SLOT, SPARE_SLOT)

    def prefill(self, tokens: int) -> dict[str, Any]:
        """Median speed of a prefill of so many tokens in chunks."""
        start = self.plan.prefill_depth
        before = self.limits()
        times = [self.prefill_seconds(start, tokens) for _ in range(1 + self.plan.repeats)][1:]
        self.peak_memory_bytes = max(self.peak_memory_bytes, resident_bytes())
        limits = before.mean(self.limits())
        seconds = statistics.median(times)
        products = prefill_products(self.config, self.checkpoint, start=start, tokens=tokens)
        return {
            "kind": "prefill",
            "depth": start,
            "tokens": tokens,
            "prefill_tok_s": _rounded(tokens / seconds),
            "spread": _spread(times),
            "mbu": None,
            "mfu": _share(products / seconds, limits.peak),
            **_limits(limits),
        }

    def decode(self, depth: int) -> dict[str, Any]:
        """Median speed of decoding one token after another from a depth."""
        before = self.limits()
        times = self.decode_seconds(depth, self.plan.decode_tokens)
        self.peak_memory_bytes = max(self.peak_memory_bytes, resident_bytes())
        limits = before.mean(self.limits())
        seconds = statistics.median(times)
        cost = token_cost(self.config, self.checkpoint, depth + WARM_UP_TOKENS + self.plan.decode_tokens // 2)
        return {
            "kind": "decode",
            "depth": depth,
            "tokens": self.plan.decode_tokens,
            "decode_tok_s": _rounded(1 / seconds),
            "spread": _spread(times),
            "mbu": _share(cost.bytes / seconds, limits.read_bytes_per_second),
            "mfu": _share((cost.prefill_products + cost.head_products) / seconds, limits.peak),
            **_limits(limits),
        }

    def decode_seconds(self, depth: int, tokens: int) -> list[float]:
        """Seconds of each of so many tokens from a depth, after a few that do not count."""
        times = []
        self.backend.copy_state(SPARE_SLOT, SLOT)
        for i in range(WARM_UP_TOKENS + tokens):
            start = time.perf_counter()
            self._pass(depth + i, 1)
            times.append(time.perf_counter() - start)
        return times[WARM_UP_TOKENS:]

    def prefill_seconds(self, start: int, tokens: int) -> float:
        """Seconds of one prefill in chunks."""
        self.backend.copy_state(SPARE_SLOT, SLOT)
        began = time.perf_counter()
        for done in range(0, tokens, self.plan.chunk):
            self._pass(start + done, min(self.plan.chunk, tokens - done))
        return time.perf_counter() - began

    def _pass(self, start: int, count: int) -> None:
        """Rows start … start + count of the one sequence, with the logits of the last on the host."""
        rows = np.arange(start, start + count, dtype=np.int32)
        batch = Batch(
            token_ids=self.ids[rows],
            positions=np.tile(rows, (3, 1)),
            cu_seqlens=np.array([0, count], np.int32),
            context_lens=np.array([start], np.int32),
            block_tables=np.arange(self.blocks, dtype=np.int32)[None],
            slot_mapping=rows,
            state_slots=np.array([SLOT], np.int32),
            logits_indices=np.array([count - 1], np.int32),
        )
        self.backend.forward(batch).to_numpy()


def _memory(backend: Backend, blocks: int, chunk: int) -> Any:
    engine = EngineConfig(
        block_size=BLOCK_SIZE, max_num_seqs=1, num_state_slots=2, prefill_chunk_tokens=chunk, memory_bytes=1 << 60
    )
    # Asked once with no limit for the size of a block, then with the machine's own limit for what is needed.
    size = backend.plan_memory(replace(engine, kv_cache_bytes=1 << 40)).kv_bytes_per_block
    return backend.plan_memory(replace(engine, kv_cache_bytes=size * blocks, memory_bytes=None))


def _limits(limits: Roofline) -> dict[str, float | None]:
    return {
        "bandwidth_gb_s": _rounded(limits.read_bytes_per_second / 1e9),
        "peak_gop_s": None if limits.peak is None else _rounded(2 * limits.peak / 1e9),
    }


def _share(value: float, limit: float | None) -> float | None:
    return round(value / limit, 4) if limit else None


def _spread(times: list[float]) -> float:
    """(longest - shortest) / median."""
    return round((max(times) - min(times)) / statistics.median(times), 3)


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
