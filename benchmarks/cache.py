"""What the cache saves and costs, measured on a real model through the engine: the table of docs/cache.md.

    python benchmarks/cache.py [--model DIR] [--rows append,edit,…] [--scale 1.0] [--cases 1000] [--seconds 600] [--json]

Seconds are processor time of this process on one thread, so that a busy machine does not change them; set
``STERNA_NUM_THREADS=1``. ``--scale`` shortens all conversations. The last line is the whole result as JSON with --json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sterna.accounting import state_bytes
from sterna.config import PRESETS, EngineConfig, preset
from sterna.doctor.trace import Job, compare, run_jobs
from sterna.engine.engine import Engine
from sterna.llm import LLM
from sterna.sessions.keeper import SessionKeeper
from sterna.sessions.store import SessionStore
from sterna.types import SamplingParams

MAX_MODEL_LEN = 40_960


class Bench:
    """One loaded model; every row works in namespaces of its own."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.llm = self.load()
        self.ids = self.llm.chat_format.tokenizer.encode(_text())
        self.names = (f"bench-{i}" for i in range(10**6))

    def load(self, **options: Any) -> LLM:
        """A service with its own caches."""
        config = EngineConfig(max_model_len=MAX_MODEL_LEN, **options)
        return LLM.load(self.args.model, backend="native", engine_config=config)

    def tokens(self, length: int, seed: int) -> list[int]:
        """Different text for every seed."""
        rng, found = random.Random(seed), list[int]()
        while len(found) < length:
            at = rng.randrange(len(self.ids) - 40)
            found += self.ids[at : at + rng.randrange(8, 40)]
        return found[:length]

    def scaled(self, length: int) -> int:
        """A length of the table, shortened."""
        return max(64, int(length * self.args.scale))


def ask(
    engine: Engine, prompt: list[int], namespace: str, *, answer: int = 8, turns: list[int] = ()
) -> tuple[list[int], Any]:
    """All tokens and the usage of one greedy request."""
    job = Job(prompt, 1, namespace, answer, temperature=0.0, turn_starts=turns)
    (found,) = run_jobs(engine, [job])
    return found.all_ids, found.usage


def row_append(bench: Bench) -> dict[str, Any]:
    """Append-only chat: the next turn computes only the new tokens."""
    engine, name = bench.llm.engine, next(bench.names)
    known, _ = ask(engine, bench.tokens(bench.scaled(8_000), 1), name)
    _, usage = ask(engine, [*known, *bench.tokens(100, 2)], name)
    # the last sampled token was never an input
    return {
        "new": 101,
        "computed": usage.computed_tokens,
        "cached": usage.cached_tokens,
        "ok": usage.computed_tokens == 101,
    }


def row_edit(bench: Bench) -> dict[str, Any]:
    """Last turn edited anywhere inside a long turn: how much is replayed before the difference."""
    engine, name, worst = bench.llm.engine, next(bench.names), 0
    head = bench.tokens(bench.scaled(6_000), 3)
    turn = bench.tokens(bench.scaled(3_000), 4)
    ask(engine, [*head, *turn], name, turns=[0, 500, len(head)])
    for at in (1, len(turn) // 3, len(turn) // 2, len(turn) - 5):
        changed = [*head, *turn[:at], *bench.tokens(60, 5 + at)]
        _, usage = ask(engine, changed, name, turns=[0, 500, len(head)])
        worst = max(worst, len(head) + at - usage.cached_tokens)
    return {"replayed_at_most": worst, "ok": worst <= 1_024}


def row_agents(bench: Bench) -> dict[str, Any]:
    """Two sub-agents of 4K interleaved with a main context of 16K."""
    engine, name, recomputed = bench.llm.engine, next(bench.names), 0
    known = {i: bench.tokens(bench.scaled(n), 10 + i) for i, n in enumerate((16_000, 4_000, 4_000))}
    for i, prompt in known.items():
        known[i], _ = ask(engine, prompt, name)
    for turn in range(6):
        for i in known:
            new = bench.tokens(50, 100 + 10 * turn + i)
            known[i], usage = ask(engine, [*known[i], *new], name)
            recomputed += usage.computed_tokens - len(new) - 1
    return {"recomputed": recomputed, "ok": recomputed == 0}


def row_restart(bench: Bench) -> dict[str, Any]:
    """A stored session of 32K: tokens computed and time to the first token after a restart."""
    name, prompt = next(bench.names), bench.tokens(bench.scaled(32_000), 20)
    with tempfile.TemporaryDirectory() as directory:
        for attempt in range(2):
            engine = bench.llm.engine
            engine.cache.prefixes.clear(name)
            store = SessionStore(Path(directory))
            keeper = SessionKeeper(store, bench.llm.backend, engine.cache, model=bench.llm.name)
            engine.keeper = keeper
            start, wall = time.process_time(), time.perf_counter()
            known, usage = ask(engine, prompt, name, answer=1)
            seconds, waited = time.process_time() - start, time.perf_counter() - wall
            keeper.flush()
            size = store.total_bytes()
            engine.keeper = None
            keeper.close()
            if attempt == 0:
                whole = seconds
                prompt = [*known, *bench.tokens(20, 21)]
    return {
        "computed": usage.computed_tokens, "stored_bytes": size, "first_token_cpu_s": seconds, "first_token_wall_s": waited,
        "computing_it_cpu_s": whole, "ok": usage.computed_tokens <= 1_024,
    }  # fmt: skip


def row_overhead(bench: Bench) -> dict[str, Any]:
    """Prompts that are never reused: processor time with snapshots and disk, against none of both."""
    plain = bench.load(snapshot_bytes=0)
    ratios = []
    with tempfile.TemporaryDirectory() as directory:
        keeper = SessionKeeper(SessionStore(Path(directory)), bench.llm.backend, bench.llm.engine.cache, model="bench")
        for i in range(5):
            prompt, seconds = bench.tokens(bench.scaled(4_096), 30 + i), {}
            for label, engine in (("plain", plain.engine), ("cached", bench.llm.engine))[:: 1 - 2 * (i % 2)]:
                engine.keeper = keeper if label == "cached" else None
                start = time.thread_time()
                ask(engine, prompt, next(bench.names), answer=1, turns=[0, 500, 2_000])
                seconds[label] = time.thread_time() - start
            ratios.append(seconds["cached"] / seconds["plain"] - 1)
        bench.llm.engine.keeper = None
        keeper.close()
    plain.close()
    overhead = statistics.median(ratios)
    snapshots = bench.llm.engine.cache.prefixes
    return {
        "overhead": overhead, "snapshots": snapshots.num_snapshots, "snapshots_allowed": snapshots.max_snapshots,
        "ok": overhead <= 0.02 and snapshots.num_snapshots <= snapshots.max_snapshots,
    }  # fmt: skip


def row_memory(bench: Bench) -> dict[str, Any]:
    """A conversation of 60 turns with as many snapshots as 1 GiB holds on the full model."""
    official = state_bytes(preset(PRESETS[0]).text)
    size = official["recurrent"] + official["conv_float32"]
    allowed = EngineConfig().snapshot_bytes // size
    llm = bench.load(snapshot_bytes=allowed * bench.llm.engine.plan.state_bytes_per_slot)
    known, turns, extra, most = bench.tokens(500, 40), [0, 500], 0, 0
    per_turn = bench.scaled(64_000) // 60 // 2
    for turn in range(60):
        turns.append(len(known))
        new = bench.tokens(per_turn, 41 + turn)
        known, usage = ask(llm.engine, [*known, *new], "memory", turns=turns)
        extra += usage.computed_tokens - len(new) - (1 if turn else 500)
        most = max(most, llm.engine.cache.prefixes.num_snapshots)
    _, usage = ask(llm.engine, [*known[: turns[-1]], *bench.tokens(40, 999)], "memory", turns=turns)
    replay = turns[-1] - usage.cached_tokens
    llm.close()
    return {
        "conversation": len(known), "snapshots_at_most": most, "bytes_on_the_full_model": most * size,
        "recomputed": extra, "replayed_after_edit": replay, "ok": most * size <= 1 << 30 and extra == 0 and replay <= 1_024,
    }  # fmt: skip


def row_stream(bench: Bench) -> dict[str, Any]:
    """A stream that decodes while a 16K prompt is computed: time between its tokens, and what is left of the prompt's speed."""
    engine, prompt = bench.llm.engine, bench.tokens(bench.scaled(16_000), 50)
    engine.pacer.clock = time.process_time

    def stream(count: int) -> int:
        bias = {token: -100.0 for token in bench.llm.backend.config.eos_token_ids}
        params = SamplingParams(seed=1, max_tokens=count, logit_bias=bias)
        return engine.add_request(bench.tokens(300, 51), params, namespace=next(bench.names))

    alone = stream(60)
    gaps = _gaps(engine, alone, until=alone)
    undisturbed = statistics.median(gaps[5:])
    start = time.process_time()
    ask(engine, prompt, next(bench.names), answer=1)
    whole = time.process_time() - start
    beside = stream(30_000)
    while not any(event.request_id == beside for event in engine.step()):
        pass
    params = SamplingParams(temperature=0.0, max_tokens=1)
    long = engine.add_request(prompt, params, namespace=next(bench.names))
    start = time.process_time()
    gaps = _gaps(engine, beside, until=long)
    disturbed = time.process_time() - start
    engine.cancel(beside)
    engine.pacer.clock = time.perf_counter
    return {
        "gap_alone_s": undisturbed, "gap_beside_s": statistics.median(gaps), "gap_p95_s": sorted(gaps)[len(gaps) * 95 // 100],
        "slower": statistics.median(gaps) / undisturbed, "prompt_speed": whole / disturbed, "tokens_meanwhile": len(gaps),
        "ok": statistics.median(gaps) <= 3 * undisturbed and whole / disturbed >= 0.75,
    }  # fmt: skip


def _gaps(engine: Engine, request: int, *, until: int) -> list[float]:
    gaps, last = [], time.process_time()
    while engine.is_active(until):
        for event in engine.step():
            if event.request_id == request:
                now = time.process_time()
                gaps.append(now - last)
                last = now
    return gaps


def row_bits(bench: Bench) -> dict[str, Any]:
    """Random combinations of cache, batch, chunk, restore and temperature against each request on its own."""
    rng, engine, differing, rows = random.Random(5), bench.llm.engine, 0, 0
    with tempfile.TemporaryDirectory() as directory:
        store = SessionStore(Path(directory), quota_bytes=1 << 30)
        keeper = SessionKeeper(store, bench.llm.backend, engine.cache, model="bench", min_tokens=64)
        shared, done, seed = next(bench.names), 0, 0
        roots = [bench.tokens(rng.randrange(10, 200), 60 + i) for i in range(6)]
        while done < bench.args.cases:
            engine.keeper = keeper if rng.random() < 0.5 else None
            if rng.random() < 0.3:
                keeper.flush()
                engine.cache.prefixes.clear(shared)
            jobs = []
            for _ in range(rng.randrange(1, 5)):
                seed += 1
                root = rng.choice(roots)
                prompt = [*root[: rng.randrange(1, len(root) + 1)], *bench.tokens(rng.randrange(1, 60), 1000 + seed)]
                jobs.append(Job(prompt, seed, shared, rng.randrange(1, 9), temperature=rng.choice((0.0, 0.7, 1.0))))
            engine.scheduler.chunk_tokens = rng.choice((16, 64, 512))
            together = run_jobs(engine, jobs)
            engine.keeper, engine.scheduler.chunk_tokens = None, 512
            for job, answer in zip(jobs, together, strict=True):
                (alone,) = run_jobs(engine, [dataclasses.replace(job, namespace=next(bench.names))])
                found = compare(alone, answer)
                rows += found.rows
                differing += found.differing + (not found.same_text)
                if rng.random() < 0.3:
                    roots[rng.randrange(len(roots))] = answer.all_ids[:400]
            done += len(jobs)
        keeper.close()
    return {"cases": done, "rows_of_logits": rows, "differing": differing, "ok": differing == 0 and rows > 0}


def row_soak(bench: Bench) -> dict[str, Any]:
    """64 concurrent requests of four keys with random cancels: nothing leaks, nobody starves."""
    rng, engine, end = random.Random(6), bench.llm.engine, time.monotonic() + bench.args.seconds
    active: dict[int, int] = {}
    finished = cancelled = steps = longest = 0
    while time.monotonic() < end or active:
        while len(active) < 64 and time.monotonic() < end:
            prompt = bench.tokens(rng.randrange(5, 300), rng.randrange(40))
            params = SamplingParams(seed=rng.randrange(99), max_tokens=rng.randrange(1, 40))
            request = engine.add_request(
                prompt, params, namespace=f"soak-{rng.randrange(4)}", priority=rng.randrange(2), turn_starts=[0, 5]
            )
            active[request] = steps
        for event in engine.step():
            if event.token.finish_reason is not None:
                longest = max(longest, steps - active.pop(event.request_id))
                finished += 1
        steps += 1
        if rng.random() < 0.1 and active:
            request = rng.choice(list(active))
            del active[request]
            engine.cancel(request)
            cancelled += 1
    audit = engine.cache.audit()
    lost = audit.lost_blocks + audit.lost_states
    return {
        "seconds": bench.args.seconds, "finished": finished, "cancelled": cancelled, "lost": lost,
        "longest_wait_steps": longest, "ok": lost == 0 and finished > 0,
    }  # fmt: skip


ROWS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "append": row_append, "edit": row_edit, "agents": row_agents, "restart": row_restart, "overhead": row_overhead,
    "memory": row_memory, "stream": row_stream, "bits": row_bits, "soak": row_soak,
}  # fmt: skip


def _text() -> str:
    root = Path(__file__).parents[1] / "src" / "sterna"
    return "".join(path.read_text() for path in sorted((root / "engine").glob("*.py")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--rows", default=",".join(ROWS), help="which, comma-separated")
    parser.add_argument("--scale", type=float, default=1.0, help="length of conversations against the table")
    parser.add_argument("--cases", type=int, default=1000, help="of the row `bits`")
    parser.add_argument("--seconds", type=float, default=600, help="of the row `soak`")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    bench, results = Bench(args), {}
    for name in args.rows.split(","):
        results[name] = found = ROWS[name](bench)
        figures = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in found.items())
        print(f"{name}: {figures}", flush=True)
    if args.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
