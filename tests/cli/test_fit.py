"""``sterna fit`` as a program reads it."""

from __future__ import annotations

import json

import pytest

from sterna.cli.main import main
from support.golden import GOLDEN


def fit(capsys: pytest.CaptureFixture[str], *args: str) -> dict:
    assert main(["fit", "--json", *args]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_the_published_figures(capsys: pytest.CaptureFixture[str]) -> None:
    result = fit(capsys)
    assert result["parameters"]["total"] == 35_951_822_704
    assert result["parameters"]["active"] == 2_946_429_568
    assert result["bytes"]["weights"]["text"]["bf16"] == 69_321_221_376
    assert {plan["context"] for plan in result["plans"]} == {32_768, 131_072, 262_144}


def test_a_plan_fits_exactly_as_long_as_its_bytes_do(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--memory", "24", "--context", "32768", "--sessions", "2"]
    plans = fit(capsys, *args)["plans"]
    for plan in plans:
        assert plan["total_bytes"] == sum(plan["bytes"].values())
        assert plan["fits"] == (plan["total_bytes"] <= 24 * 2**30) == (plan["max_context"] >= 32768)
    assert {plan["fits"] for plan in plans} == {True, False}


def test_without_the_head_the_plan_is_smaller(capsys: pytest.CaptureFixture[str]) -> None:
    with_head, without = (
        fit(capsys, "--context", "1")["plans"][0],
        fit(capsys, "--context", "1", "--no-mtp")["plans"][0],
    )
    assert with_head["bytes"]["weights"] - without["bytes"]["weights"] == 2 * 844_640_768
    assert with_head["bytes"]["kv"] - without["bytes"]["kv"] == 2_048


def test_a_checkpoint_directory(capsys: pytest.CaptureFixture[str]) -> None:
    result = fit(capsys, "--model", str(GOLDEN))
    assert [plan["context"] for plan in result["plans"][:1]] == [4096]
    assert main(["fit", "--model", str(GOLDEN)]) == 0
    assert "parameters" in capsys.readouterr().out


@pytest.mark.parametrize("args", [["--memory", "0"], ["--sessions", "0"], ["--context", "-5"], ["--memory", "nan"]])
def test_wrong_values_are_refused(capsys: pytest.CaptureFixture[str], args: list[str]) -> None:
    assert main(["fit", *args]) == 2
    assert "allowed is" in capsys.readouterr().err
