"""The training loop: steps, checkpoints that survive a kill at any moment, measures, progress."""

from __future__ import annotations

import ctypes
import json
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from sterna.errors import CheckpointError
from sterna.train.model import TrainingModel, initialise
from sterna.train.optimizer import Optimizer
from sterna.train.schedule import Schedule
from sterna.train.shape import ModelShape
from sterna.train.shards import MicroBatch, ShardStream
from sterna.train.validation import Vocabulary, evaluate, held_out_batches
from sterna.train.workers import Workers


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Everything that decides a training run besides the data and the shape.

    Attributes:
        tokens_per_step: tokens of one optimizer step, padding not counted; micro_tokens: of one forward pass, padding counted.
        mtp_every: the MTP head is trained on every so many steps; mtp_weight: its loss weight there.
        hours, tokens: length of the training, exactly one of them.
    """

    seed: int = 0
    hours: float | None = None
    tokens: int | None = None
    tokens_per_step: int = 16_384
    micro_tokens: int = 3_072
    max_length: int = 8_192
    learning_rate: float = 4e-3
    optimizer: str = "muon"
    warmup_steps: int = 60
    decay_fraction: float = 0.35
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    balance_weight: float = 0.01
    mtp_weight: float = 0.3
    mtp_every: int = 4
    threads: int = 2
    checkpoint_every_s: float = 180.0
    evaluate_every_s: float = 900.0
    evaluate_episodes: int = 64


@dataclass
class Progress:
    """Counters that a checkpoint carries; ``seconds`` is time spent training."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0


def keep_freed_memory() -> None:
    """Let glibc reuse freed buffers: returning them to the system costs a page fault per 4 KiB at every step."""
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    trim_threshold, mmap_threshold, arenas = -1, -3, -8
    mallopt(arenas, 1)
    mallopt(mmap_threshold, 1 << 30)
    mallopt(trim_threshold, (1 << 31) - 1)


@dataclass
class Trainer:
    """One training run in the directory ``out``: ``checkpoint.pt``, ``metrics.jsonl``, ``curves.png``.

    ``start_from`` is the checkpoint of another run whose weights this one continues under a schedule of its own.
    """

    data: Path
    out: Path
    shape: ModelShape
    settings: TrainSettings
    vocabulary: Vocabulary
    start_from: Path | None = None
    progress: Progress = field(default_factory=Progress)
    stopping: bool = False

    def __post_init__(self) -> None:
        settings = self.settings
        keep_freed_memory()
        # Parallel work is done by whole threads (see workers.py); operators inside them stay on one core.
        torch.set_num_threads(1)
        self.out.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(settings.seed)
        self.model = TrainingModel(self.shape)
        initialise(self.model, seed=settings.seed)
        self.workers = Workers(self.model, threads=settings.threads)
        self.optimizer = Optimizer(
            self.model, pool=self.workers.pool, muon=settings.optimizer == "muon", weight_decay=settings.weight_decay
        )
        self.schedule = Schedule(
            peak=settings.learning_rate,
            warmup_steps=settings.warmup_steps,
            decay_fraction=settings.decay_fraction,
            horizon_tokens=settings.tokens,
            horizon_s=None if settings.hours is None else settings.hours * 3600,
        )
        self.stream = ShardStream(
            self.data, settings.seed, settings.tokens_per_step, settings.micro_tokens, settings.max_length
        )
        if self.checkpoint_path.exists():
            self._resume()
        elif self.start_from is not None:
            self._take_weights(self.start_from)

    @property
    def checkpoint_path(self) -> Path:
        """The one checkpoint, always complete."""
        return self.out / "checkpoint.pt"

    @property
    def metrics_path(self) -> Path:
        """One JSON object per line and step."""
        return self.out / "metrics.jsonl"

    def run(self, *, report: Callable[[dict[str, Any]], None] | None = None, max_steps: int | None = None) -> bool:
        """Train until the horizon, ``max_steps`` more steps, or a signal; True when the horizon was reached."""
        report = report or StatusLine(self.schedule)
        settings, progress = self.settings, self.progress
        last_saved = last_evaluated = time.monotonic()
        first_step = progress.step
        with self.metrics_path.open("a", encoding="utf-8") as metrics, _stop_on_signal(self):
            for batches in self.stream:
                record = self.train_step(batches)
                now = time.monotonic()
                done = self._progress_fraction() >= 1
                ending = done or self.stopping or (max_steps is not None and progress.step - first_step >= max_steps)
                if done or now - last_evaluated >= settings.evaluate_every_s:
                    record["held_out"] = self.evaluate()
                    last_evaluated = time.monotonic()
                metrics.write(json.dumps(record) + "\n")
                metrics.flush()
                if ending or now - last_saved >= settings.checkpoint_every_s:
                    self.save()
                    last_saved = time.monotonic()
                report(record)
                if ending:
                    return done
        raise AssertionError("the stream of steps has no end")

    def _progress_fraction(self) -> float:
        return self.schedule.progress(tokens=self.progress.tokens, seconds=self.progress.seconds)

    def train_step(self, batches: list[MicroBatch]) -> dict[str, Any]:
        """One optimizer step; returns the record for ``metrics.jsonl``."""
        settings, progress = self.settings, self.progress
        started = time.perf_counter()
        with_mtp = progress.step % settings.mtp_every == 0
        sums = self.workers.gradients(
            batches,
            with_mtp=with_mtp,
            mtp_weight=settings.mtp_weight,
            balance_weight=settings.balance_weight,
        )
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip_norm))
        rate = self.schedule.learning_rate(step=progress.step, progress=self._progress_fraction())
        self.optimizer.step(lr=rate)
        elapsed = time.perf_counter() - started
        progress.step += 1
        progress.tokens += sums.tokens
        progress.seconds += elapsed
        record = {
            "step": progress.step, "tokens": progress.tokens, "seconds": round(progress.seconds, 3),
            "loss": round(sums.loss, 6), "balance": round(sums.balance, 6),
            "token": round(sums.right / max(1, sums.seen), 5), "weighted_tokens": sums.seen,
            "grad_norm": round(norm, 5), "lr": rate, "tokens_per_s": round(sums.tokens / elapsed, 1),
            "shard": self.stream.current, "progress": round(self._progress_fraction(), 6),
        }  # fmt: skip
        return record | ({"mtp_loss": round(sums.mtp, 6)} if with_mtp else {})

    def evaluate(self) -> dict[str, float]:
        """Held-out measures; empty without a held-out shard."""
        settings = self.settings
        batches = held_out_batches(
            self.data,
            episodes=settings.evaluate_episodes,
            micro_tokens=settings.micro_tokens,
            max_length=settings.max_length,
        )
        return evaluate(self.model, batches, self.vocabulary)

    def save(self) -> None:
        """Write the checkpoint so that at any moment either the old or the new one is complete on disk."""
        state = {
            "format": 1,
            "shape": asdict(self.shape),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "stream": self.stream.state(),
            "progress": asdict(self.progress),
            "rng": torch.get_rng_state(),
        }
        temporary = self.checkpoint_path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.checkpoint_path)

    def _take_weights(self, path: Path) -> dict[str, Any]:
        """Weights and optimizer state of a checkpoint; schedule, data and counters stay as they are."""
        state = read_checkpoint(path)
        if state["shape"] != asdict(self.shape):
            raise CheckpointError(f"{path} has another shape: {state['shape']}", hint="train in another directory")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        return state

    def _resume(self) -> None:
        state = self._take_weights(self.checkpoint_path)
        self.stream.restore(state["stream"])
        self.progress = Progress(**state["progress"])
        torch.set_rng_state(state["rng"])
        _drop_later_records(self.metrics_path, self.progress.step)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load a training checkpoint without running any code it may contain."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"cannot read {path}: {error}", hint="delete it to start over") from error
    return state


def _drop_later_records(metrics: Path, step: int) -> None:
    """Forget measures of steps that will be trained again, and a last line that was cut off."""
    if not metrics.exists():
        return
    kept = []
    for line in metrics.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except ValueError:
            continue
    temporary = metrics.with_suffix(".tmp")
    temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    os.replace(temporary, metrics)


@contextmanager
def _stop_on_signal(trainer: Trainer) -> Iterator[None]:
    """Finish the step and save on the first interrupt; the second one interrupts as usual."""

    def request_stop(number: int, _: Any) -> None:
        trainer.stopping = True
        signal.signal(number, previous[number])

    previous: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in previous:
        signal.signal(number, request_stop)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class StatusLine:
    """One line on standard error, rewritten at every step on a terminal, printed now and then elsewhere."""

    def __init__(self, schedule: Schedule, *, every_s: float = 30.0) -> None:
        self.schedule, self.every_s, self.last = schedule, every_s, 0.0
        self.started: tuple[float, float] | None = None

    def __call__(self, record: dict[str, Any]) -> None:
        terminal = sys.stderr.isatty()
        now = time.monotonic()
        if self.started is None:
            self.started = (now, record["progress"])
        if held_out := record.get("held_out"):
            print(f"\nheld out at step {record['step']}: {json.dumps(held_out)}", file=sys.stderr, flush=True)
        if not terminal and now - self.last < self.every_s:
            return
        self.last = now
        share = min(1.0, record["progress"])
        advanced = record["progress"] - self.started[1]
        left = (1 - share) * (now - self.started[0]) / advanced if advanced > 0 else float("nan")
        bar = ("█" * round(24 * share)).ljust(24, "·")
        text = (
            f"{bar} {share:6.1%}  step {record['step']}  {record['tokens'] / 1e6:.2f} M tokens  "
            f"loss {record['loss']:.3f}  right {record['token']:.1%}  {record['tokens_per_s']:,.0f} tok/s  "
            + (f"left {left / 60:,.0f} min" if left == left else "")
        )
        print(f"\r{text}" if terminal else text, end="" if terminal else "\n", file=sys.stderr, flush=True)
