"""``sterna pull`` against a hub on this machine, in its own process where the environment matters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sterna.cli.main import main
from sterna.cli.pull import ProgressLine
from sterna.hub.meter import Meter
from sterna.locate import STERNULA_DIRECTORY
from support.hub_double import Fault, HubDouble, directory_files
from support.tiny_checkpoint import write_tiny_checkpoint


def sterna(*args: str, home: Path, endpoint: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "STERNA_HOME": str(home), "HF_ENDPOINT": endpoint, "STERNA_BACKEND": "numpy"}
    environ.pop("STERNA_MODEL", None)
    return subprocess.run(
        [sys.executable, "-m", "sterna", *args], capture_output=True, text=True, env=environ, timeout=300
    )


def test_pull_then_fit_then_run_with_sternula(tmp_path) -> None:
    faults = {"model.safetensors": Fault("interrupted", after=1_000_000), "tokenizer.json": Fault("redirect")}
    with HubDouble(directory_files(STERNULA_DIRECTORY), repo_id="sterna/sternula", faults=faults) as hub:
        done = sterna("pull", "sterna/sternula", "--json", home=tmp_path, endpoint=hub.endpoint)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["licence"] == "apache-2.0" and "licence: apache-2.0" in done.stderr
    assert "fits: " in done.stderr and "GB to fetch into" in done.stderr
    directory = Path(result["directory"])
    assert (directory / "model.safetensors").read_bytes() == (STERNULA_DIRECTORY / "model.safetensors").read_bytes()
    listed = sterna("pull", "--list", home=tmp_path, endpoint="http://127.0.0.1:9")
    assert "sterna--sternula" in listed.stdout
    fit = sterna("fit", "--model", str(directory), "--json", home=tmp_path, endpoint="http://127.0.0.1:9")
    assert fit.returncode == 0, fit.stderr
    said = sterna("run", "-p", "Hi", "--max-tokens", "2", home=tmp_path, endpoint="http://127.0.0.1:9")
    assert said.returncode == 0 and "model: sterna--sternula (the newest that fits" in said.stderr


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["name-without-owner"], "allowed is OWNER/NAME"),
        (["https://example.org/a/b"], "allowed is OWNER/NAME"),
        (["--from", "/nowhere"], "allowed is a directory"),
        (["--from", ".", "--text-only"], "allowed is one of them"),
        (["a/b", "--hardware", "abacus"], "allowed is"),
    ],
)
def test_wrong_usage(args, words, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("STERNA_HOME", str(tmp_path))
    assert main(["pull", *args]) == 2
    assert words in capsys.readouterr().err


def test_from_a_directory(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("STERNA_HOME", str(tmp_path / "home"))
    source = write_tiny_checkpoint(tmp_path / "tiny")
    assert main(["pull", "me/tiny", "--from", str(source), "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert Path(result["directory"]) == tmp_path / "home" / "models" / "me--tiny"
    assert main(["pull", "--list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["record"]["repo_id"] == "me/tiny"


def test_an_empty_list(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("STERNA_HOME", str(tmp_path))
    assert main(["pull", "--list"]) == 0
    assert "nothing was pulled" in capsys.readouterr().err


def test_the_progress_line_ends_with_the_total(capsys) -> None:
    meter = Meter(10_000_000)
    with ProgressLine(terminal=True, interval_s=60.0) as line:
        line.show(meter)
        meter.add(10_000_000)
    err = capsys.readouterr().err
    assert err.startswith("\r") and "10.0 of 10.0 MB" in err and err.endswith("\n")
