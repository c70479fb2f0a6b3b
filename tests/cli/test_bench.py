"""``sterna bench``: the shape of its result and what it refuses. No speed decides anything here."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sterna.bench import roofline
from sterna.cli import bench
from sterna.cli.main import main

SHORT = [
    *("--prefill", "40,70", "--decode-depth", "0,130", "--decode-tokens", "3"),
    *("--repeat", "1", "--chunk", "32", "--threads", "1"),
]


@pytest.fixture(autouse=True)
def _small_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "READ_BYTES", 1 << 22)
    # The command sets it for the process.
    monkeypatch.setenv("STERNA_NUM_THREADS", "1")
    monkeypatch.setattr(roofline, "float_peak", lambda threads: 1e9 * threads)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["bench", *SHORT, *arguments, "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return result


@pytest.mark.parametrize(
    ("arguments", "kind", "weights"),
    [
        (["--backend", "native"], "float32", "stored"),
        (["--backend", "numpy"], "float32", "stored"),
        (["--backend", "native", "--recipe", "q8"], "int8", "stored"),
    ],
    ids=["native", "numpy", "native q8"],
)
def test_result(arguments: list[str], kind: str, weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(capsys, *arguments)
    assert set(result) == {"machine", "roofline", "model", "load_seconds", "points", "peak_memory_bytes"}
    assert result["roofline"]["bandwidth_gb_s"] > 0 and result["roofline"]["peak_kind"] == kind
    assert result["model"]["name"] == "sternula" and result["model"]["weights"] == weights
    assert [cost["depth"] for cost in result["model"]["token"]] == [0, 130]
    assert result["model"]["token"][1]["kv_bytes"] == 130 * 2 * 2 * 2 * 64 * 2
    points = result["points"]
    assert [(p["kind"], p["tokens"], p["depth"]) for p in points] == [
        ("prefill", 40, 0),
        ("prefill", 70, 0),
        ("decode", 3, 0),
        ("decode", 3, 130),
    ]
    assert all(p["prefill_tok_s"] > 0 and p["mfu"] > 0 and p["mbu"] is None for p in points[:2])
    assert all(p["decode_tok_s"] > 0 and p["mfu"] > 0 and p["mbu"] > 0 for p in points[2:])


def test_limits_come_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *SHORT, "--backend", "numpy"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "limits measured now" in lines[1] and "at most" in lines[3] and "prefill" in lines[5]


def test_random_weights_of_the_official_shape_are_refused_before_they_are_made(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sterna.backends.host_memory.available_host_bytes", lambda: 1 << 30)
    arguments = ["--preset", "qwen3.6-35b-a3b", "--weights", "random", "--layers", "4", "--backend", "native"]
    assert main(["bench", *SHORT, *arguments]) == 1
    error = capsys.readouterr().err
    assert "the weights take 2." in error and "GB, 1.07 GB are free" in error and "hint: use fewer layers" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "qwen3.6-35b-a3b"], "belong together"),
        (["--weights", "random"], "belong together"),
        (["--layers", "4"], "--layers is for --preset"),
        (["--model", "x", "--preset", "qwen3.6-35b-a3b", "--weights", "random"], "allowed is one"),
        (["--prefill-depth", "-1"], "--prefill-depth is -1, allowed is 0 or more"),
        (["--prefill", "0"], "--prefill is 0, allowed is 1 or more"),
        (["--decode-depth", "400000"], "the context is 262,144"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_numbers() -> None:
    assert bench._numbers("1,20") == (1, 20) and bench._numbers("") == ()
