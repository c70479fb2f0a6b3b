"""Runs one process to its end or its time-out and keeps a bounded part of what it printed."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from dataclasses import dataclass

from sterna.agent.output import HeadTail
from sterna.agent.sandbox.base import Launch, Limits
from sterna.errors import SandboxError

_POLL_S = 0.1
_KILL_GRACE_S = 5.0
_CHUNK_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class ProcessEnd:
    """How a process ended; ``note`` says why it was killed when that was not the time-out."""

    output: str
    exit_code: int
    timed_out: bool
    left_out_chars: int
    note: str | None
    duration_s: float


def run_process(launch: Launch, *, timeout_s: float, limits: Limits, pass_fds: tuple[int, ...] = ()) -> ProcessEnd:
    """Starts ``launch`` without input, drains its output and kills it at the time-out or at ``limits.output_bytes``.

    Raises:
        SandboxError: the program could not be started.
    """
    start = time.monotonic()
    try:
        process = subprocess.Popen(
            launch.argv,
            env=launch.env,
            cwd=launch.cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=pass_fds,
            start_new_session=True,
        )
    except OSError as error:
        raise SandboxError(f"{launch.argv[0]} cannot be started: {error.strerror}") from error
    kept = HeadTail(max_chars=limits.output_chars)
    note: str | None = None
    timed_out = False
    try:
        note = _drain(process, kept, deadline=start + timeout_s, limits=limits)
        timed_out = note == _TIMED_OUT
    finally:
        _end(process, kept, killed=note is not None)
    return ProcessEnd(
        output=kept.text(),
        exit_code=137 if note is not None else _exit_code(process.returncode),
        timed_out=timed_out,
        left_out_chars=kept.left_out_chars,
        note=None if timed_out else note,
        duration_s=time.monotonic() - start,
    )


_TIMED_OUT = "timed out"
