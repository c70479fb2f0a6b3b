"""One measurement of llama.cpp or ik_llama.cpp over its C interface; called by `benchmarks/peers.py` with the peers' Python.

    python benchmarks/peer_runner.py llama|ik MODEL.gguf prefill|decode --tokens N --depth D --repeats R --threads T

Prints one line of JSON: ``seconds``, a list (one per prefill, or one per decoded token), ``load_seconds``, ``peak_bytes``.
Flags are the best found: passes of up to 2,048 tokens, no repacking for llama.cpp, repacking for ik_llama.cpp.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np

UBATCH, WARM_UP = 2048, 4


class Engine:
    """A loaded model with one sequence; ``api`` is the ctypes module of the engine."""

    def __init__(self, name: str, path: str, *, context: int, threads: int) -> None:
        self.name = name
        self.api: Any = importlib.import_module({"llama": "llama_cpp", "ik": "ik_llama_cpp._ctypes_api"}[name])
        # The log must outlive the engine, and says nothing that is wanted here.
        self.api.llama_backend_init()
        params = self.api.llama_model_default_params()
        params.n_gpu_layers = 0
        if name == "llama":
            params.use_extra_bufts = False
        else:
            params.repack_tensors = True
        self.model = self.api.llama_model_load_from_file(path.encode(), params)
        settings = self.api.llama_context_default_params()
        settings.n_ctx = -(-context // 256) * 256
        settings.n_batch = settings.n_ubatch = min(UBATCH, settings.n_ctx)
        settings.n_threads = settings.n_threads_batch = threads
        if not self.model:
            raise SystemExit(f"error: {name} cannot load {path}")
        self.context = self.api.llama_init_from_model(self.model, settings)
        if not self.context:
            raise SystemExit(f"error: {name} cannot make a context")
        self.width = self.api.llama_vocab_n_tokens(self.api.llama_model_get_vocab(self.model))

    def clear(self) -> None:
        if self.name == "llama":
            self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)
        else:
            self.api.llama_kv_cache_clear(self.context)

    def run(self, ids: np.ndarray, start: int) -> None:
        """Tokens in passes of `UBATCH`, the logits of the last one read."""
        for at in range(0, len(ids), UBATCH):
            part = ids[at : at + UBATCH]
            batch = self._batch(part, start + at)
            code = self.api.llama_decode(self.context, batch)
            if code != 0:
                raise SystemExit(f"error: {self.name} refused a pass with code {code}")
        logits = np.ctypeslib.as_array(self.api.llama_get_logits_ith(self.context, len(part) - 1), (self.width,))
        if not np.isfinite(logits).all():
            raise SystemExit(f"error: {self.name} computed logits that are not finite")

    def _batch(self, ids: np.ndarray, start: int) -> Any:
        count = len(ids)
        self._kept = batch = self.api.llama_batch_init(count, 0, 1)
        batch.n_tokens = count
        for i in range(count):
            batch.token[i] = int(ids[i])
            batch.pos[i] = start + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = i == count - 1
        return batch


def prefills(engine: Engine, ids: np.ndarray, *, tokens: int, depth: int, repeats: int) -> list[float]:
    seconds = []
    for _ in range(1 + repeats):
        engine.clear()
        if depth:
            engine.run(ids[:depth], 0)
        start = time.perf_counter()
        engine.run(ids[depth : depth + tokens], depth)
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def decoded(engine: Engine, ids: np.ndarray, *, tokens: int, depth: int) -> list[float]:
    if depth:
        engine.run(ids[:depth], 0)
    seconds = []
    for i in range(WARM_UP + tokens):
        start = time.perf_counter()
        engine.run(ids[depth + i : depth + i + 1], depth + i)
        seconds.append(time.perf_counter() - start)
    return seconds[WARM_UP:]


def peak_bytes() -> int:
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=("llama", "ik"))
    parser.add_argument("model")
    parser.add_argument("kind", choices=("prefill", "decode"))
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--depth", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    total = args.depth + args.tokens + WARM_UP
    start = time.perf_counter()
    engine = Engine(args.engine, args.model, context=total, threads=args.threads)
    load = time.perf_counter() - start
    ids = np.random.default_rng(0).integers(0, engine.width, total)
    if args.kind == "prefill":
        seconds = prefills(engine, ids, tokens=args.tokens, depth=args.depth, repeats=args.repeats)
    else:
        seconds = decoded(engine, ids, tokens=args.tokens, depth=args.depth)
    print(json.dumps({"seconds": seconds, "load_seconds": load, "peak_bytes": peak_bytes()}))


if __name__ == "__main__":
    main()
