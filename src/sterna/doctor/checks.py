"""The checks. Each compares two ways to compute the same tokens and says what it found, with figures."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from sterna.doctor.trace import Answer, Difference, Job, chunked, compare, run_jobs
from sterna.engine.engine import Engine
from sterna.llm import LLM
from sterna.ops.tolerances import FLOAT32_LOGITS
from sterna.sessions.keeper import SessionKeeper
from sterna.sessions.store import SessionStore
from sterna.types import SamplingParams

Status = Literal["PASS", "FAIL", "SKIP"]
# A prompt longer than one prefill chunk of 512 tokens, where the context has room for it.
LONG_PROMPT = 560
ANSWER_TOKENS = 12
# Backends that promise equal bits however the work is cut; the others promise a tolerance.
EXACT_BACKENDS = frozenset({"native"})


@dataclass(frozen=True, slots=True)
class Check:
    """One property: ``detail`` says in words what was found, ``figures`` are the same as numbers."""

    name: str
    status: Status
    detail: str
    figures: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


class DoctorRun:
    """The checks on one loaded model, with its own cache namespaces, which are dropped in the end.

    ``text`` gives the prompts their tokens; by default a page of simple program text.
    """

    def __init__(self, llm: LLM, *, text: str | None = None) -> None:
        self.llm = llm
        self.engine: Engine = llm.engine
        self.exact = llm.backend.name in EXACT_BACKENDS
        self._ids = llm.chat_format.tokenizer.encode(text or _page())
        self._seeds = itertools.count(1)
        self._namespaces = (f"doctor-{number}" for number in itertools.count())

    def checks(self) -> Iterator[Check]:
        """Run everything, yielding each result as it is known; an exception inside a check is a FAIL."""
        table: tuple[tuple[str, Callable[[], Check]], ...] = (
            ("chunked = whole", self.chunked_equals_whole),
            ("decode = prefill", self.decode_equals_prefill),
            ("hit = miss", self.hit_equals_miss),
            ("parallel N = 1", self.parallel_equals_alone),
            ("restored = continuous", self.restored_equals_continuous),
            ("speculation on = off", self.speculation_equals_plain),
            ("cancelled requests leak nothing", self.cancelled_requests_leak_nothing),
        )
        for name, check in table:
            start = time.perf_counter()
            try:
                found = check()
            except Exception as error:
                found = Check(name, "FAIL", f"{type(error).__name__}: {error}")
            yield replace(found, name=name, seconds=round(time.perf_counter() - start, 3))
        self.engine.cache.clear()

    def chunked_equals_whole(self) -> Check:
        """A prompt in pieces of 37 tokens against the same one in the engine's own chunks."""
        job = Job(self.prompt(LONG_PROMPT), self.seed(), self.namespace(), ANSWER_TOKENS)
        (whole,) = run_jobs(self.engine, [job])
        with chunked(self.engine, max(37, self.engine.scheduler.max_num_seqs)):
            (pieces,) = run_jobs(self.engine, [replace(job, namespace=self.namespace())])
        return self.verdict(compare(whole, pieces), f"{len(job.token_ids)} tokens in pieces of 37 and of 512")

    def decode_equals_prefill(self) -> Check:
        """An answer given back as part of a prompt: its last row was a decode step once and is prefill now."""
        job = Job(self.prompt(90), self.seed(), self.namespace(), ANSWER_TOKENS)
        (answer,) = run_jobs(self.engine, [job])
        found = Difference()
        for kept in sorted({1, len(answer.token_ids) // 2, len(answer.token_ids) - 1} - {0}):
            prompt = [*job.token_ids, *answer.token_ids[:kept]]
            (again,) = run_jobs(self.engine, [Job(prompt, job.seed, self.namespace(), 1)])
            found += compare(answer, again)
        return self.verdict(found, "answers computed token by token and as prompts")

    def hit_equals_miss(self) -> Check:
        """A conversation that grows, is edited and branches, against the same prompts with nothing cached."""
        shared, size = self.namespace(), LONG_PROMPT // 2
        turns = [0, size // 3, size - 20]
        first = Job(self.prompt(size), self.seed(), shared, ANSWER_TOKENS, turn_starts=turns)
        (answer,) = run_jobs(self.engine, [first])
        grown = [*answer.all_ids, *self.prompt(40, start=7)]
        edited = [*first.token_ids[: turns[2]], *self.prompt(30, start=11)]
        branch = [*first.token_ids[: turns[1]], *self.prompt(50, start=13)]
        found, cached, missed = Difference(), [], 0
        for prompt in (grown, edited, branch):
            job = Job(prompt, self.seed(), shared, ANSWER_TOKENS, turn_starts=turns)
            (hit,) = run_jobs(self.engine, [job])
            (miss,) = run_jobs(self.engine, [replace(job, namespace=self.namespace(), turn_starts=())])
            found += compare(hit, miss)
            cached.append(hit.usage.cached_tokens)
            missed += miss.usage.cached_tokens
        detail = f"continued, edited and branched, {' + '.join(map(str, cached))} tokens from the cache"
        check = self.verdict(found, detail)
        if missed:
            return replace(check, status="FAIL", detail=f"{missed} tokens were reused across namespaces")
        if not all(cached) and self.engine.cache.prefixes.max_snapshots:
            return replace(check, status="FAIL", detail=f"{detail}: at least one prompt found nothing to reuse")
        return replace(check, figures={**check.figures, "cached_tokens": sum(cached)})

    def parallel_equals_alone(self) -> Check:
        """Prompts of different lengths together in one batch, greedy and sampled, against each on its own."""
        count = min(4, self.engine.scheduler.max_num_seqs)
        jobs = [
            Job(self.prompt(31 + 40 * i, start=i), self.seed(), "", ANSWER_TOKENS + i, temperature=float(i % 2))
            for i in range(count)
        ]
        alone = [run_jobs(self.engine, [replace(job, namespace=self.namespace())])[0] for job in jobs]
        together = run_jobs(self.engine, [replace(job, namespace=self.namespace()) for job in jobs])
        found = sum((compare(a, b) for a, b in zip(alone, together, strict=True)), Difference())
        return self.verdict(found, f"{count} requests together and each alone")

    def restored_equals_continuous(self) -> Check:
        """A conversation written to disk, forgotten and mapped again, against one that was never interrupted."""
        namespace, own = self.namespace(), self.engine.keeper
        with tempfile.TemporaryDirectory(prefix="sterna-doctor-") as directory:
            store = SessionStore(Path(directory), reserve_bytes=0)
            keeper = SessionKeeper(store, self.llm.backend, self.engine.cache, model=self.llm.name, min_tokens=32)
            self.engine.keeper = keeper
            try:
                job = Job(self.prompt(LONG_PROMPT // 2, start=5), self.seed(), namespace, ANSWER_TOKENS)
                (first,) = run_jobs(self.engine, [job])
                keeper.flush()
                written = store.total_bytes()
                self.engine.cache.prefixes.clear(namespace)
                grown = Job([*first.all_ids, *self.prompt(20, start=9)], self.seed(), namespace, ANSWER_TOKENS)
                (restored,) = run_jobs(self.engine, [grown])
            finally:
                self.engine.keeper = own
                keeper.close()
        (continuous,) = run_jobs(self.engine, [replace(grown, namespace=self.namespace())])
        cached = restored.usage.cached_tokens
        check = self.verdict(compare(restored, continuous), f"{cached} tokens from {written:,} bytes on disk")
        figures = {**check.figures, "restored_tokens": cached, "stored_bytes": written}
        if not cached and self.engine.cache.prefixes.max_snapshots:
            return Check("", "FAIL", f"{written:,} bytes were stored, nothing was restored", figures)
        return replace(check, figures=figures)

    def speculation_equals_plain(self) -> Check:
        """Text and logits with drafts and without."""
        return Check("", "SKIP", "this version does not speculate")

    def cancelled_requests_leak_nothing(self) -> Check:
        """Requests cancelled while they wait, in the middle of their prompts and while they answer."""
        engine, namespace = self.engine, self.namespace()
        requests = []
        for i in range(2 * engine.scheduler.max_num_seqs + 1):
            params = SamplingParams(seed=i, max_tokens=64)
            requests.append(engine.add_request(self.prompt(20 + 30 * i, start=i), params, namespace=namespace))
        for i, request in enumerate(requests):
            for _ in range(i % 3):
                engine.step()
            engine.cancel(request)
        audit = engine.cache.audit()
        figures = {
            "requests": len(requests),
            "lost_blocks": audit.lost_blocks,
            "lost_states": audit.lost_states,
            "left_behind": len(engine.scheduler.running) + len(engine.scheduler.waiting),
        }
        leaks = audit.lost_blocks or audit.lost_states or figures["left_behind"]
        detail = (
            f"{len(requests)} cancelled, {audit.lost_blocks} of {audit.blocks:,} blocks and "
            f"{audit.lost_states} of {audit.states} state slots lost"
        )
        return Check("", "FAIL" if leaks else "PASS", detail, figures)

    # for the checks --------------------------------------------------------------------------------------------------

    def seed(self) -> int:
        """A seed that no other job of this run has."""
        return next(self._seeds)

    def namespace(self) -> str:
        """A cache namespace in which nothing is known."""
        return next(self._namespaces)

    def prompt(self, length: int, *, start: int = 0) -> list[int]:
        """So many tokens of text, or three fifths of the context where that is less; ``start`` gives another text."""
        length = min(length, self.engine.max_model_len * 3 // 5)
        shifted = self._ids[start * 17 % len(self._ids) :] + self._ids
        return list(itertools.islice(itertools.cycle(shifted), length))

    def verdict(self, found: Difference, detail: str) -> Check:
        """PASS when every bit is equal, or on a backend that promises less when the difference is within its tolerance."""
        figures = {"rows": found.rows, "differing_rows": found.differing, "largest_difference": found.largest}
        if self.exact or found.differing == 0:
            passed = found.rows > 0 and found.differing == 0 and found.same_text
            detail += f"; {found.rows} rows of logits, {found.differing} differ"
        else:
            passed = found.rows > 0 and found.largest <= FLOAT32_LOGITS
            detail += f"; {found.rows} rows of logits, largest difference {found.largest:.1e}, allowed {FLOAT32_LOGITS}"
        return Check("", "PASS" if passed else "FAIL", detail, figures)


def _page() -> str:
    """Program text without long repetitions."""
    names = ("total", "count", "index", "value", "left", "right", "items", "path", "width", "depth")
    functions: Sequence[str] = [
        f"def {a}_{b}({a}, {b}):\n    if {a} > {b} + {i}:\n        return {a} - {i * i}\n    return {b} * {i + 3}\n\n\n"
        for i, (a, b) in enumerate(itertools.permutations(names, 2))
    ]
    return "".join(functions)


__all__ = ["Answer", "Check", "DoctorRun"]
