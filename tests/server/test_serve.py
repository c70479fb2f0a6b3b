"""``sterna serve`` as a process: it says where it is, answers, and ends with 0."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx

from support.tiny_checkpoint import write_tiny_checkpoint

SOURCE = Path(__file__).parents[2] / "src"


def test_it_answers_and_a_signal_ends_it_with_0(tmp_path):
    checkpoint = write_tiny_checkpoint(tmp_path / "tiny")
    argv = ["serve", "--model", str(checkpoint), "--backend", "numpy", "--port", "0", "--require-key"]
    code = (
        f"import sys; sys.path.insert(0, {str(SOURCE)!r}); from sterna.cli.main import main; sys.exit(main({argv!r}))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={"STERNA_HOME": str(tmp_path / "home"), "PATH": "", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        url, line = None, ""
        while url is None:
            line = process.stderr.readline()
            assert line, process.stderr.read()
            url = re.search(r"at (http://127\.0\.0\.1:\d+/v1)$", line.rstrip())
        key = process.stdout.readline().rpartition(" ")[2].strip()
        headers = {"Authorization": f"Bearer {key}"}
        body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, "seed": 1}
        answers = [
            httpx.post(f"{url[1]}/chat/completions", json=body, headers=headers, timeout=30, trust_env=False).json()
            for _ in range(2)
        ]
        assert answers[0]["usage"]["completion_tokens"] <= 4
        assert answers[0]["choices"] == answers[1]["choices"]
        assert httpx.get(f"{url[1]}/models", trust_env=False).status_code == 401
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()
