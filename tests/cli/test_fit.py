"""``sterna fit`` as a program reads it, and as a person does."""

from __future__ import annotations

import json

import pytest

from sterna.cli.main import main
from sterna.fit import hardware_names
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
    assert {plan["weights"] for plan in result["plans"]} == {"bf16", "fp8", "q8", "q4", "q4-small"}


def test_a_plan_fits_exactly_as_long_as_its_bytes_do(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--memory", "24", "--context", "32768", "--sessions", "2"]
    plans = fit(capsys, *args)["plans"]
    for plan in plans:
        assert plan["total_bytes"] == sum(plan["bytes"].values())
        assert plan["fits"] == (plan["total_bytes"] <= 24 * 2**30) == (plan["max_context"] >= 32768)
        assert plan["fits"] == (plan["max_sessions"] >= 2)
    assert {plan["fits"] for plan in plans} == {True, False}


def test_without_the_head_the_plan_is_smaller(capsys: pytest.CaptureFixture[str]) -> None:
    with_head, without, with_vision = (
        fit(capsys, "--context", "64", *more)["plans"][0] for more in ([], ["--no-mtp"], ["--vision"])
    )
    assert with_head["bytes"]["weights"] - without["bytes"]["weights"] == 2 * 844_640_768
    assert with_head["bytes"]["kv"] - without["bytes"]["kv"] == 64 * 2_048
    assert with_vision["bytes"]["weights"] - with_head["bytes"]["weights"] == 2 * 446_571_248


def test_snapshots_are_a_choice(capsys: pytest.CaptureFixture[str]) -> None:
    kept, none = (fit(capsys, "--precision", "q8", *more)["plans"][0]["bytes"] for more in ([], ["--no-snapshots"]))
    assert (kept.pop("snapshots"), none.pop("snapshots")) == (16 * (62_914_560 + 2_949_120), 0)
    assert kept == none


def test_a_checkpoint_directory(capsys: pytest.CaptureFixture[str]) -> None:
    result = fit(capsys, "--model", str(GOLDEN))
    assert [plan["context"] for plan in result["plans"][:1]] == [4096]
    assert main(["fit", "--model", str(GOLDEN)]) == 0
    assert "parameters" in capsys.readouterr().out


@pytest.mark.parametrize("name", [*hardware_names(), "8g", "16g", "4x24g", "RAM:64g"])
def test_other_machines(capsys: pytest.CaptureFixture[str], name: str) -> None:
    result = fit(capsys, "--hardware", name, "--precision", "q4")
    assert result["hardware"]["devices"] == (4 if name.startswith("4x") else 1)
    assert all(plan["fits"] is not None for plan in result["plans"])
    assert main(["fit", "--hardware", name]) == 0
    assert "usable" in capsys.readouterr().out


def test_ranks_that_cannot_share_the_heads_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    plans = fit(capsys, "--hardware", "3x24g")["plans"]
    assert all(plan["fits"] is None and "3 ranks cannot share 2" in plan["obstacle"] for plan in plans)
    assert main(["fit", "--hardware", "3x24g"]) == 0
    assert "not possible: 3 ranks cannot share 2 key and value heads" in capsys.readouterr().out


def test_the_announcement_row_by_row(capsys: pytest.CaptureFixture[str]) -> None:
    rows = fit(capsys, "--announcement")["rows"]
    assert [row["verdict"] for row in rows] == ["holds", "imprecise", "holds", "wrong", "wrong"]
    assert main(["fit", "--announcement"]) == 0
    out = capsys.readouterr().out
    assert "71.90 GB" in out and "37.45 GB" in out and "4 copies" in out


def test_the_list_of_machines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--hardware", "list"]) == 0
    assert "rtx4090" in capsys.readouterr().out
    assert main(["fit", "--hardware", "list", "--json"]) == 0
    assert {each["key"] for each in json.loads(capsys.readouterr().out)} == set(hardware_names())


@pytest.mark.parametrize(
    "args",
    [
        ["--memory", "0"], ["--sessions", "0"], ["--context", "-5"], ["--memory", "nan"], ["--context", "262145"],
        ["--hardware", "rtx9999"], ["--hardware", "0x24g"], ["--hardware", "ram:0g"], ["--precision", "int3"],
    ],
)  # fmt: skip
def test_wrong_values_are_refused(capsys: pytest.CaptureFixture[str], args: list[str]) -> None:
    assert main(["fit", *args]) == 2
    assert "allowed is" in capsys.readouterr().err
