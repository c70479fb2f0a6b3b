"""Conversations outlive the process, whatever happens to it and to its disk; the text is right in any case."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.test_engine import assert_nothing_leaks
from sessions.conftest import Kept
from sterna.errors import SessionError
from sterna.sessions import store as store_module
from sterna.sessions.store import SessionStore

LONG = [1 + (i * i) % 47 for i in range(40)]


def files(directory):
    return sorted(path for path in Path(directory).rglob("*") if path.suffix in {".kv", ".state", ".session"})


def test_after_a_restart_only_new_tokens_are_computed(start):
    first = start()
    tokens = first.ask(LONG)
    first.close()
    second = start()
    grown = second.ask([*tokens, 9, 9])
    assert second.usage.cached_tokens == len(tokens) - 1
    assert second.said == []
    second.close()
    third = start()
    third.ask([*grown, 8])
    assert third.usage.cached_tokens == len(grown) - 1
    assert_nothing_leaks(third.engine)


def test_a_growing_conversation_is_one_session_whose_files_are_replaced(start):
    life = start()
    tokens = life.ask(LONG, turns=[0, 10])
    names = set()
    for turn in range(4):
        tokens = life.ask([*tokens, 20 + turn], turns=[0, 10])
        (session,) = life.store.sessions("")
        names.add(session.id)
        assert [(p.start, p.end) for p in session.segments][-1][1] == len(session.tokens) == len(tokens) - 1
    assert len(names) == 1
    parts = {path.name for path in files(life.store.directory) if path.suffix != ".session"}
    assert len(parts) == len({part.name for part in session.parts})
    assert 10 in [state.position for state in session.states]


def test_a_conversation_that_parts_shares_files(start):
    life = start()
    life.ask([*LONG, 5, 6], turns=[0, 36])
    life.ask([*LONG[:36], 7, 8, 9], turns=[0, 36])
    a, b = life.store.sessions("")
    assert {p.name for p in a.segments} & {p.name for p in b.segments}
    assert life.store.total_bytes() < a.size + b.size + 4096
    life.close()
    again = start()
    again.ask([*LONG[:36], 7, 1])
    assert again.usage.cached_tokens == 36


def test_a_changed_last_turn_replaces_the_old_one(start):
    life = start()
    tokens = life.ask(LONG)
    life.ask([*tokens[:-1], 50, 51])
    (session,) = life.store.sessions("")
    assert session.tokens.tolist()[: len(tokens) + 1] == [*tokens[:-1], 50, 51]


def test_keys_are_apart_and_not_on_the_disk(start):
    first = start()
    tokens = first.ask(LONG, namespace="secret-key-1")
    first.close()
    second = start()
    second.ask([*tokens, 1], namespace="secret-key-2")
    assert second.usage.cached_tokens == 0
    second.ask([*tokens, 1], namespace="secret-key-1")
    assert second.usage.cached_tokens == len(tokens) - 1
    for path in second.store.directory.rglob("*"):
        assert "secret-key" not in str(path)
        assert path.is_dir() or b"secret-key" not in path.read_bytes()
        assert path.stat().st_mode & 0o077 == 0


def test_another_model_is_told_and_computed_again(start, monkeypatch):
    first = start()
    tokens = first.ask(LONG)
    first.close()
    monkeypatch.setattr("support.fake_backend.FakeBackend.fingerprint", lambda self: "another")
    second = start()
    second.ask([*tokens, 1])
    assert second.usage.cached_tokens == 0
    assert "stored by another model, kernel variant or setting (fake) and is computed again" in second.said[0]
    assert len(second.store.sessions()) == 2


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    directory = tmp_path_factory.mktemp("stored")
    life = Kept(directory / "sessions")
    tokens = life.ask(LONG, turns=[0, 10])
    life.close()
    return directory / "sessions", tokens


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(which=st.integers(0, 10**6), at=st.integers(0, 10**6), change=st.integers(1, 255))
def test_any_flipped_byte_is_detected_and_the_text_is_right(stored, tmp_path, which, at, change):
    directory, tokens = stored
    copy = tmp_path / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(directory, copy)
    path = files(copy)[which % len(files(copy))]
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= change
    path.write_bytes(data)
    life = Kept(copy)
    life.ask([*tokens, 3])
    needed = path.suffix != ".state" or life.usage.cached_tokens == 0
    assert (life.usage.cached_tokens < len(tokens) - 1) == needed
    assert len(life.said) == needed
    life.close()


@pytest.mark.parametrize("suffix", [".kv", ".state", ".session"])
@pytest.mark.parametrize("damage", ["cut", "empty", "longer", "gone", "another"])
def test_damaged_files_are_computed_again(stored, tmp_path, suffix, damage):
    copy = tmp_path / "copy"
    shutil.copytree(stored[0], copy)
    paths = [path for path in files(copy) if path.suffix == suffix]
    for path in paths:
        data = path.read_bytes()
        if damage == "gone":
            path.unlink()
        else:
            other = data if suffix == ".session" else paths[0 if path != paths[0] else -1].read_bytes()
            path.write_bytes(
                {"cut": data[: len(data) // 2], "empty": b"", "longer": data + b"x", "another": other}[damage]
            )
    life = Kept(copy)
    life.ask([*stored[1], 3])
    if (suffix, damage) != (".session", "another"):
        assert life.usage.cached_tokens == 0
        assert life.said or (suffix, damage) == (".session", "gone")
    life.close()


def test_the_quota_holds_and_the_oldest_goes(start, monkeypatch):
    clock = iter(range(1000, 0, -1))
    monkeypatch.setattr(store_module, "now", lambda: float(next(clock)))
    life = start(store={"quota_bytes": 9000})
    asked = [life.ask([i, *LONG[:30]]) for i in range(1, 9)]
    assert life.store.total_bytes() <= 9000
    kept = life.store.sessions("")
    # the clock ran backwards, which decides nothing
    assert 1 <= len(kept) < 8
    assert [s.tokens[0] for s in kept] == list(range(8, 8 - len(kept), -1))
    assert kept[0].updated < kept[-1].updated
    life.close()
    again = start()
    again.ask([*asked[-1], 2])
    assert again.usage.cached_tokens > 0


def test_a_quota_for_nothing_is_said_once(start):
    life = start(store={"quota_bytes": 100})
    life.ask(LONG)
    life.ask(LONG[::-1])
    assert life.said == ["a session is not stored: the quota of 100 bytes is too small for one session"]
    assert files(life.store.directory) == []


def test_a_full_disk_degrades_to_none(start, monkeypatch):
    life = start()
    tokens = life.ask(LONG)
    before = files(life.store.directory)
    write, calls = os.write, iter(range(1000))

    def full(descriptor, data):
        if next(calls) >= 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data[: len(data) // 2 + 1])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        life.ask([*tokens, 7, 7, 7])
        life.ask([*LONG[::-1], 4])
    assert life.said == ["sessions are not stored: the disk is full"]
    assert not list(life.store.directory.rglob("*.tmp"))
    assert files(life.store.directory) == before
    life.close()
    again = start()
    again.ask([*tokens, 9])
    assert again.usage.cached_tokens == len(tokens) - 1
    assert again.store.writable


def test_a_second_process_reads_only(start):
    first = start()
    tokens = first.ask(LONG)
    second = start()
    second.ask([*tokens, 1])
    assert second.usage.cached_tokens == len(tokens) - 1
    assert "another process writes to" in second.said[0]
    with pytest.raises(SessionError, match="sessions cannot be changed: another process") as error:
        second.store.fork(second.store.sessions()[0].id)
    assert error.value.hint == "end the other process first"
    assert len(first.store.sessions()) == 1
    first.close()
    assert start().store.writable


def test_an_older_format_is_removed_and_a_newer_one_left(tmp_path):
    for version in (0, 99):
        (tmp_path / f"v{version}").mkdir()
    said = []
    SessionStore(tmp_path, say=said.append).close()
    assert said == ["stored sessions of format 0 are removed and will be computed again"]
    assert not (tmp_path / "v0").exists() and (tmp_path / "v99").exists()


def test_fork_and_delete(start):
    life = start()
    tokens = life.ask(LONG)
    original = life.store.sessions()[0]
    fork = life.store.fork(original.id[:6])
    life.ask([*tokens, 9])
    ids = {session.id: len(session.tokens) for session in life.store.sessions()}
    assert ids[fork.id] > ids[original.id] == len(tokens) - 1
    assert life.store.delete(fork.id) > 0
    for part in original.parts:
        life.store.read(original, part)
    assert life.store.delete(original.id) > 0
    assert files(life.store.directory) == []
    with pytest.raises(SessionError, match="there is no session 'abc'"):
        life.store.get("abc")


@pytest.mark.parametrize("options", [{"snapshot_bytes": 0}, {"num_blocks": 9}])
def test_without_room_it_is_computed(start, options):
    first = start()
    tokens = first.ask(LONG)
    first.close()
    second = start(**options)
    second.ask([*tokens[:32], 3], max_tokens=2)
    assert second.usage.cached_tokens == 0
    assert_nothing_leaks(second.engine)


WRITER = """
import sys
sys.path[:0] = {path!r}
from sessions.conftest import Kept
from pathlib import Path
life = Kept(Path(sys.argv[1]), store={{"quota_bytes": 60_000}})
print("ready", flush=True)
round = 0
while True:
    round += 1
    tokens = [1 + (round * 7 + i * i) % 47 for i in range(40)]
    for turn in range(4):
        tokens = [*life.ask(tokens, max_tokens=2), 5]
    print(*tokens[:-1], flush=True)
"""


def test_kill_at_any_moment_corrupts_nothing(tmp_path):
    code = WRITER.format(path=[path for path in sys.path if path])
    for number in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        first = process.stdout.readline()
        time.sleep(0.013 * number)
        process.send_signal(signal.SIGKILL)
        done = [first, *process.stdout.read().splitlines()]
        process.communicate()
        life = Kept(tmp_path)
        assert life.said == [] and life.store.writable
        assert not list(life.store.directory.rglob("*.tmp"))
        for session in life.store.sessions():
            for part in session.parts:
                life.store.read(session, part)
        last = [line for line in done if len(line.split()) > 40][-1]
        tokens = [int(token) for token in last.split()]
        life.ask([*tokens, 6])
        assert life.usage.cached_tokens == len(tokens) - 1
        life.close()
