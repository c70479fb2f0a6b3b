"""The first rows of benchmarks/cache.py with llama.cpp, through the Python package llama-cpp-python and its own reuse of prefixes.

    python benchmarks/cache_peers.py MODEL.gguf [--scale 1.0] [--rows append,edit,agents,restart]

Runs in an environment with llama-cpp-python and numpy; Sterna is not needed. Tokens are random: what is computed does not depend
on them. Seconds are processor time on one thread. The last line is the whole result as JSON.
"""

from __future__ import annotations

import argparse
import json
import pickle
import random
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

from llama_cpp import Llama

CONTEXT = 40_960


class Peer:
    """One context; counts the tokens that it computes."""

    def __init__(self, path: str) -> None:
        self.model = Llama(path, n_ctx=CONTEXT, n_threads=1, n_threads_batch=1, verbose=False)
        self.computed = 0
        evaluate = self.model.eval

        def counting(tokens: Any) -> None:
            self.computed += len(tokens)
            evaluate(tokens)

        self.model.eval = counting

    def ask(self, prompt: list[int], answer: int = 8) -> tuple[list[int], int, float]:
        """All tokens, how many of the prompt were computed, and processor seconds to the first token."""
        self.computed, start = 0, time.process_time()
        found, first = [], 0.0
        for token in self.model.generate(prompt, top_k=1, temp=0.0):
            if not found:
                first, computed = time.process_time() - start, self.computed
            found.append(token)
            if len(found) == answer:
                break
        return [*prompt, *found], computed, first


def tokens(length: int, seed: int) -> list[int]:
    """Random ids."""
    rng = random.Random(seed)
    return [rng.randrange(300, 3_900) for _ in range(length)]


def row_append(peer: Peer, scale: float) -> dict[str, Any]:
    """An append-only chat."""
    known, _, _ = peer.ask(tokens(int(8_000 * scale), 1))
    _, computed, first = peer.ask([*known, *tokens(100, 2)])
    return {"new": 101, "computed": computed, "first_token_cpu_s": first}


def row_edit(peer: Peer, scale: float) -> dict[str, Any]:
    """The last turn edited in its middle."""
    head, turn = tokens(int(6_000 * scale), 3), tokens(int(3_000 * scale), 4)
    peer.ask([*head, *turn])
    kept = len(turn) // 2
    _, computed, first = peer.ask([*head, *turn[:kept], *tokens(60, 5)])
    return {"replayed": computed - 60, "first_token_cpu_s": first}


def row_agents(peer: Peer, scale: float) -> dict[str, Any]:
    """Two sub-agents beside a main context."""
    known = {i: tokens(int(n * scale), 10 + i) for i, n in enumerate((16_000, 4_000, 4_000))}
    for i, prompt in known.items():
        known[i], _, _ = peer.ask(prompt)
    recomputed = 0
    for turn in range(2):
        for i in known:
            new = tokens(50, 100 + 10 * turn + i)
            known[i], computed, _ = peer.ask([*known[i], *new])
            recomputed += computed - len(new) - 1
    return {"turns": 6, "recomputed": recomputed}


def row_restart(peer: Peer, scale: float) -> dict[str, Any]:
    """A saved state of a long session, loaded again."""
    prompt = tokens(int(32_000 * scale), 20)
    known, _, whole = peer.ask(prompt, answer=1)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "state"
        path.write_bytes(pickle.dumps(peer.model.save_state()))
        size = path.stat().st_size
        peer.model.reset()
        start = time.process_time()
        peer.model.load_state(pickle.loads(path.read_bytes()))
        loaded = time.process_time() - start
        _, computed, first = peer.ask([*known, *tokens(20, 21)], answer=1)
    return {
        "computed": computed, "stored_bytes": size, "first_token_cpu_s": loaded + first, "computing_it_cpu_s": whole,
    }  # fmt: skip


ROWS = {"append": row_append, "edit": row_edit, "agents": row_agents, "restart": row_restart}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--rows", default=",".join(ROWS))
    args = parser.parse_args()
    results = {}
    for name in args.rows.split(","):
        peer = Peer(args.model)
        results[name] = found = ROWS[name](peer, args.scale)
        found["peak_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        peer.model.close()
        print(f"{name}: {found}", flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
