"""What every restricting rung must hold, as root and as a plain user, each tried from inside by force."""

from __future__ import annotations

import os
import pwd
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .lab import PLAIN_UID, RESTRICTING, USERS, Lab, open_lab


@pytest.fixture(
    scope="module",
    params=[(user, rung) for rung in RESTRICTING for user in USERS],
    ids=lambda pair: f"{pair[1]}-{pair[0]}",
)
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with open_lab(*request.param) as opened:
        yield opened


def living(marker: str) -> list[str]:
    """The command lines of this machine's processes that contain ``marker``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if marker in line:
                found.append(line)
    return found


def wait_until_gone(marker: str) -> list[str]:
    deadline = time.monotonic() + 10
    while (left := living(marker)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


def test_the_workspace_works(lab: Lab) -> None:
    made, python, tmp, cwd, shell = lab.run(
        "echo hello > file && mkdir -p sub && cd sub && touch inner",
        "pwd && python -c 'import json, ssl, sys; print(sys.version_info >= (3, 11))' && echo kept > \"$TMPDIR/note\"",
        'cat "$TMPDIR/note"; echo "$HOME"; ls -d "$HOME"; echo $LANG $PYTHONDONTWRITEBYTECODE',
        "cd /nonexistent; pwd",
        "sed -i s/hello/bye/ file 2>&1; cat ../file; seq 3 | (cat; exit 7)",
    )
    assert made.exit_code == 0, made.output
    assert python.output.splitlines() == [str(lab.workspace / "sub"), "True"]
    lines = tmp.output.splitlines()
    assert lines[0] == "kept" and lines[1] == lines[2] and lines[3] == "C.UTF-8 1"
    assert cwd.output.splitlines()[-1] == str(lab.workspace / "sub")
    assert shell.output.splitlines()[-4:] == ["hello", "1", "2", "3"] and shell.exit_code == 7
    owner = PLAIN_UID if lab.user == "user" and os.geteuid() == 0 else os.geteuid()
    assert (lab.workspace / "file").stat().st_uid == owner


WRITES = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
os.chdir("/")

def attempt(*actions):
    for action in actions:
        try:
            action()
        except OSError:
            pass

for directory in DIRECTORIES:
    # remount, read-write; bind; private: none of them harms a host on which they should succeed
    for flags in (0x1020, 0x20):
        libc.mount(b"none", directory.encode(), b"none", flags, None)
    new = directory + "/NAME"
    attempt(
        lambda: open(new, "w"), lambda: os.mkdir(new), lambda: os.mkfifo(new), lambda: os.symlink("x", new),
        lambda: os.link("WORKSPACE/code.py", new), lambda: os.rename("WORKSPACE/victim", new),
    )
libc.umount2(b"HOME", 2)
libc.mount(b"tmpfs", b"HOME", b"tmpfs", 0, None)
for path in ("HOME/secret", "HOME/open"):
    attempt(
        lambda: os.unlink(path), lambda: os.truncate(path, 0), lambda: os.open(path, os.O_RDONLY | os.O_TRUNC),
        lambda: os.open(path, os.O_WRONLY), lambda: os.rename(path, path + "-moved"), lambda: os.chmod(path, 0o777),
        lambda: os.utime(path, (1, 1)), lambda: os.utime(path), lambda: os.setxattr(path, "user.x", b"y"),
        lambda: os.chown(path, os.getuid(), os.getgid()), lambda: os.rename("WORKSPACE/victim", path),
    )
print("tried")
"""


def test_nothing_outside_can_be_written(lab: Lab) -> None:
    # Only paths whose loss harms nobody are attacked: a failing test must not be a failing machine.
    name = f"escape-{lab.token}"
    home = pwd.getpwuid(os.geteuid()).pw_dir
    system = ["/", "/usr", "/usr/bin", "/etc", "/opt", "/dev", "/var", "/var/tmp", "/tmp", "/run", home]
    directories = [*system, str(lab.root), str(lab.home)]
    (lab.home / "open").write_text("readable by everyone")
    code = WRITES.replace("DIRECTORIES", repr(directories)).replace("NAME", name)
    code = code.replace("WORKSPACE", str(lab.workspace)).replace("HOME", str(lab.home))
    (lab.workspace / "victim").touch()
    files = [lab.home / "secret", lab.home / "open"]
    before = [_fingerprint(path) for path in files]
    assert lab.one(lab.python_code(code)).output == "tried\n"
    assert [path for path in directories if os.path.lexists(os.path.join(path, name))] == []
    assert [_fingerprint(path) for path in files] == before


def _fingerprint(path: Path) -> tuple[object, ...]:
    status = path.stat()
    return status.st_mode, status.st_uid, status.st_mtime_ns, status.st_nlink, os.listxattr(path), path.read_bytes()


def test_secrets_cannot_be_read(lab: Lab) -> None:
    planted = [lab.home / "secret"]
    if lab.user == "root":
        planted.append(Path(pwd.getpwuid(0).pw_dir) / f".secret-{lab.token}")
        planted[1].write_text(f"file-{lab.token}")
        planted[1].chmod(0o600)
    read_fd, write_fd = os.pipe()
    try:
        os.write(write_fd, f"descriptor-{lab.token}".encode())
        results = lab.run(
            *[f"cat {path}; cat < {path}; cp {path} copy; ls -la {path.parent}" for path in planted],
            "env; export -p; cat /proc/self/environ | tr '\\0' '\\n'",
            "cat /proc/[0-9]*/environ /proc/[0-9]*/task/*/environ 2>&1 | tr '\\0' '\\n'",
            f"timeout 1 cat <&{read_fd}",
            f"cat /proc/[0-9]*/root{lab.home}/secret /proc/[0-9]*/cwd/home/secret",
            "cat /etc/shadow /etc/gshadow /etc/ssh/*key",
            pass_fds=(read_fd,),
        )
    finally:
        os.close(read_fd)
        os.close(write_fd)
        if lab.user == "root":
            planted[1].unlink()
    text = "".join(result.output for result in results)
    assert lab.token not in text.replace(f".secret-{lab.token}", "")
    assert results[-1].exit_code != 0 and "root:" not in results[-1].output
    assert not (lab.workspace / "copy").exists()


def test_nothing_outside_can_be_reached(lab: Lab) -> None:
    path = lab.root / "listener"
    abstract = f"\0sterna-{lab.token}"
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        socket.socket(socket.AF_UNIX) as named,
        socket.socket(socket.AF_UNIX) as inside,
        socket.socket(socket.AF_UNIX) as hidden,
    ):
        udp.bind(("127.0.0.1", 0))
        named.bind(str(path))
        path.chmod(0o777)
        inside.bind(str(lab.workspace / "listener"))
        (lab.workspace / "listener").chmod(0o777)
        hidden.bind(abstract)
        code = f"""
import socket
targets = [(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", {tcp.getsockname()[1]})),
           (socket.AF_INET, socket.SOCK_STREAM, ("10.255.255.1", 80)),
           (socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", {udp.getsockname()[1]})),
           (socket.AF_INET, socket.SOCK_DGRAM, ("8.8.8.8", 53)),
           (socket.AF_UNIX, socket.SOCK_STREAM, {str(path)!r}),
           (socket.AF_UNIX, socket.SOCK_STREAM, {str(lab.workspace / "listener")!r}),
           (socket.AF_UNIX, socket.SOCK_STREAM, {abstract!r})]
for family, kind, address in targets:
    try:
        with socket.socket(family, kind) as client:
            client.settimeout(2)
            client.connect(address)
            client.send(b"escaped")
        print("sent", address if kind == socket.SOCK_STREAM else "")
    except OSError as error:
        print("refused")
left, right = socket.socketpair()
left.send(b"pair")
print(right.recv(4))
"""
        for listener in (named, inside, hidden):
            listener.listen()
        for listener in (tcp, udp, named, inside, hidden):
            listener.setblocking(False)
        result = lab.one(lab.python_code(code))
        lines = result.output.splitlines()
        # A datagram to the own, empty loopback leaves without an error; nobody receives it.
        assert [line for line in lines if line.startswith("sent ") and line != "sent "] == []
        assert lines[-1] == "b'pair'" and len(lines) == 8
        for listener in (tcp, named, inside, hidden):
            with pytest.raises(BlockingIOError):
                listener.accept()
        with pytest.raises(BlockingIOError):
            udp.recv(16)


def test_no_privileges_and_no_new_namespaces(lab: Lab) -> None:
    code = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
for flag in (0x10000000, 0x20000, 0x40000000, 0x20000000, 0x08000000):
    print(libc.unshare(flag))
# io_uring could open sockets without the socket call
print(libc.syscall(425, 8, ctypes.create_string_buffer(120)) < 0 or "io_uring")
"""
    status, nested, tools = lab.run(
        "grep -E '^(Cap|NoNewPrivs)' /proc/self/status",
        lab.python_code(code),
        "unshare -Ur true && echo nested; chroot / true && echo chroot; true",
    )
    fields = dict(line.split() for line in status.output.splitlines())
    if lab.rung == "landlock" and lab.user == "user":
        # Only root can empty its bounding set; without privileges to gain it bounds nothing.
        del fields["CapBnd:"]
    assert fields.pop("NoNewPrivs:") == "1"
    assert len(fields) >= 4 and set(fields.values()) == {"0" * 16}
    assert nested.output.splitlines()[:5] == ["-1"] * 5
    if lab.rung == "landlock":
        assert nested.output.splitlines()[5] == "True"
    assert not {"nested", "chroot"} & set(tools.output.splitlines())


def test_other_processes_are_out_of_reach(lab: Lab) -> None:
    marker = f"3600.{int(lab.token[:8], 16)}"
    with subprocess.Popen(["sleep", marker], **lab.credentials()) as victim:
        try:
            listed, killed = lab.run(
                "ls -d /proc/[0-9]*; cat /proc/[0-9]*/cmdline | tr '\\0' ' '",
                f"kill -9 {victim.pid}; true",
            )
            assert victim.poll() is None
        finally:
            victim.kill()
    assert killed.exit_code == 0
    if lab.rung == "bubblewrap":
        assert marker not in listed.output
        assert sum(line.startswith("/proc/") for line in listed.output.splitlines()) <= 4


@pytest.mark.parametrize("ending", ["time-out", "end"])
def test_nothing_outlives_the_command(lab: Lab, ending: str) -> None:
    marker = f"4321.{int(lab.token[:8], 16)}"
    background = (
        f"(setsid nohup sleep {marker} >/dev/null 2>&1 &); (trap '' TERM HUP; sleep {marker} & wait) & echo begun"
    )
    command = background + (f"; sleep {marker}" if ending == "time-out" else "; sleep 0.1")
    result = lab.one(command, timeout_s=3 if ending == "time-out" else 60)
    assert result.output == "begun\n"
    assert result.timed_out == (ending == "time-out")
    assert living(marker) == []


def test_nothing_outlives_the_host_process(lab: Lab) -> None:
    marker = f"4321.{int(lab.token[:8], 16)}"
    with subprocess.Popen(
        lab.argv(), stdin=subprocess.PIPE, env=lab.environment(), cwd=lab.root, text=True, **lab.credentials()
    ) as driver:
        assert driver.stdin is not None
        driver.stdin.write(lab.request(f"(setsid sleep {marker} &) ; sleep {marker}", timeout_s=60))
        driver.stdin.close()
        deadline = time.monotonic() + 20
        while f"sleep {marker} " not in living(marker) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert f"sleep {marker} " in living(marker)
        driver.kill()
    assert wait_until_gone(marker) == []


def test_resources_are_limited(lab: Lab) -> None:
    memory = lab.python_code(
        "try:\n    bytearray(600 << 20)\n    print('got it')\nexcept MemoryError:\n    print('refused')\n"
    )
    mem, size, core = lab.run(
        memory,
        "head -c 5000000 /dev/zero > big; stat -c %s big",
        "ulimit -c; ulimit -Hd; ulimit -d unlimited; ulimit -Hf",
        memory_bytes=256 << 20,
        file_bytes=1 << 20,
    )
    assert mem.output == "refused\n"
    assert size.output.splitlines()[-1] == str(1 << 20)
    assert core.output.splitlines()[:2] == ["0", str(256 << 10)] and core.output.splitlines()[-1] == "1024"


def test_process_bomb_ends(lab: Lab) -> None:
    code = """
import os, time
children = 0
try:
    while children < 2000:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        children += 1
except OSError:
    print("refused")
"""
    result = lab.one(lab.python_code(code), processes=64, timeout_s=30)
    assert (result.output, result.exit_code) == ("refused\n", 0) or result.note == "killed: more than 64 processes"
    assert not result.timed_out


def test_a_flood_of_output_is_bounded_and_ends(lab: Lab) -> None:
    stopped, silent = lab.run("yes flood", "exec >&- 2>&-; sleep 0.2", output_bytes=20_000_000, timeout_s=60)
    assert stopped.note == "killed: more than 20000000 bytes of output"
    assert len(stopped.output) < 16_100 and stopped.truncated_chars > 19_000_000
    assert (silent.output, silent.exit_code) == ("", 0)


def test_invalid_utf8_and_line_numbers(lab: Lab) -> None:
    invalid, unknown, signal = lab.run("printf 'a\\377b\\n'", "true\nno-such-command", "kill -TERM $$")
    assert invalid.output == "a\ufffdb\n"
    assert unknown.output == "bash: line 2: no-such-command: command not found\n" and unknown.exit_code == 127
    assert signal.exit_code == 143
