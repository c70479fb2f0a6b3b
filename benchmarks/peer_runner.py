"""llama.cpp or ik_llama.cpp over its C interface, kept loaded; started by `benchmarks/peers.py` with the peers' Python.

    python benchmarks/peer_runner.py llama|ik MODEL.gguf --context N --threads T

Reads one request per line, ``{"kind": "prefill"|"decode", "tokens": N, "depth": D}``, and answers with one line of JSON:
``seconds`` (of the whole prefill, or one per decoded token) and ``peak_bytes``. The first line is an answer too, with
``load_seconds``. Flags are the best found: passes of up to 2,048 tokens, no repacking for llama.cpp, repacking for ik_llama.cpp.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
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


class Runner:
    """Requests against one engine. Decoding goes on from where the last request at the same depth ended."""

    def __init__(self, engine: Engine, context: int) -> None:
        self.engine, self.context = engine, context
        self.ids = np.random.default_rng(0).integers(0, engine.width, context)
        self.depth, self.position = -1, 0

    def prefill(self, tokens: int, depth: int) -> list[float]:
        self._go_to(depth)
        self.depth = -1
        start = time.perf_counter()
        self.engine.run(self.ids[depth : depth + tokens], depth)
        return [time.perf_counter() - start]

    def decode(self, tokens: int, depth: int) -> list[float]:
        if self.depth != depth or self.position + WARM_UP + tokens > self.context:
            self._go_to(depth)
        seconds = []
        for _ in range(WARM_UP + tokens):
            start = time.perf_counter()
            self.engine.run(self.ids[self.position : self.position + 1], self.position)
            seconds.append(time.perf_counter() - start)
            self.position += 1
        return seconds[WARM_UP:]

    def _go_to(self, depth: int) -> None:
        self.engine.clear()
        if depth:
            self.engine.run(self.ids[:depth], 0)
        self.depth = self.position = depth


def peak_bytes() -> int:
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=("llama", "ik"))
    parser.add_argument("model")
    parser.add_argument("--context", type=int, required=True)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    start = time.perf_counter()
    engine = Engine(args.engine, args.model, context=args.context, threads=args.threads)
    print(json.dumps({"load_seconds": time.perf_counter() - start}), flush=True)
    runner = Runner(engine, args.context)
    for line in sys.stdin:
        request = json.loads(line)
        measure = {"prefill": runner.prefill, "decode": runner.decode}[request["kind"]]
        print(
            json.dumps({"seconds": measure(request["tokens"], request["depth"]), "peak_bytes": peak_bytes()}),
            flush=True,
        )


if __name__ == "__main__":
    main()
