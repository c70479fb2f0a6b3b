"""Runs one process to its end or its time-out and keeps a bounded part of what it printed."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from dataclasses import dataclass

from sterna.agent.output import HeadTail
from sterna.agent.sandbox.base import Launch, Limits
from sterna.agent.watch import HostWatch
from sterna.errors import SandboxError

_POLL_S = 0.1
_KILL_GRACE_S = 5.0
_CHUNK_BYTES = 1 << 16
_TIMED_OUT = "timed out"
KILLED_EXIT_CODE = 137


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
    """Starts ``launch`` without input, drains its output and kills it at the time-out or at a limit.

    Raises:
        SandboxError: the program could not be started.
    """
    start = time.monotonic()
    watch = HostWatch(limits)
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
    except (OSError, ValueError) as error:
        raise SandboxError(f"{launch.argv[0]} cannot be started: {error}") from error
    kept = HeadTail(max_chars=limits.output_chars)
    drain = _Drain(process, kept)
    try:
        note = drain.until_end(deadline=start + timeout_s, max_bytes=limits.output_bytes, watch=watch)
    finally:
        # Also on KeyboardInterrupt: nothing that the command started may outlive this call.
        drain.stop(launch.stop_signal)
    return ProcessEnd(
        output=kept.text(),
        exit_code=_shell_exit_code(process.returncode) if note is None else KILLED_EXIT_CODE,
        timed_out=note == _TIMED_OUT,
        left_out_chars=kept.left_out_chars,
        note=None if note == _TIMED_OUT else note,
        duration_s=time.monotonic() - start,
    )


class _Drain:
    """Reads a process's output without ever blocking it, and ends the process."""

    def __init__(self, process: subprocess.Popen[bytes], kept: HeadTail) -> None:
        assert process.stdout is not None
        self._process = process
        self._fd = process.stdout.fileno()
        self._kept = kept
        self._open = True
        self._total_bytes = 0
        os.set_blocking(self._fd, False)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)

    def until_end(self, *, deadline: float, max_bytes: int, watch: HostWatch) -> str | None:
        """Reads until the process has ended; returns the reason when it has to be killed instead."""
        while self._open or self._process.poll() is None:
            if time.monotonic() >= deadline:
                return _TIMED_OUT
            if self._total_bytes > max_bytes:
                return f"killed: more than {max_bytes} bytes of output"
            if (complaint := watch.complaint()) is not None:
                return f"killed: {complaint}"
            self._step(min(_POLL_S, max(deadline - time.monotonic(), 0.0)))
        return None

    def _step(self, wait_s: float) -> None:
        if not self._open:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(wait_s)
            return
        if not self._poll.poll(wait_s * 1000):
            return
        data = os.read(self._fd, _CHUNK_BYTES)
        self._total_bytes += len(data)
        self._kept.feed(data, final=not data)
        self._open = bool(data)

    def stop(self, stop_signal: signal.Signals) -> None:
        """Ends the process if it still runs, takes what is left in the pipe and closes it."""
        process = self._process
        if process.poll() is None:
            process.send_signal(stop_signal)
            try:
                process.wait(_KILL_GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        deadline = time.monotonic() + _KILL_GRACE_S
        while self._open and time.monotonic() < deadline:
            self._step(_POLL_S)
        assert process.stdout is not None
        process.stdout.close()


def _shell_exit_code(returncode: int) -> int:
    return 128 - returncode if returncode < 0 else returncode
