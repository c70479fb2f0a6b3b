"""The picture of a run is drawn from complete records, also while the run is still writing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="curves need the extra `train`")

from sterna.train.curves import draw_curves, read_metrics

RECORDS = [
    {"step": 1, "tokens": 1000, "loss": 2.0, "tokens_per_s": 10.0, "lr": 0.1, "mtp_loss": 3.0},
    {"step": 2, "tokens": 2000, "loss": 1.0, "tokens_per_s": 12.0, "lr": 0.05, "held_out": {"loss": 1.5, "token": 0.5}},
]


def test_a_line_still_being_written_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS) + '{"step": 3, "tok')
    assert read_metrics(path) == RECORDS


@pytest.mark.parametrize("count", [1, 2])
def test_curves_become_a_png(tmp_path: Path, count: int) -> None:
    path, picture = tmp_path / "metrics.jsonl", tmp_path / "curves.png"
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS[:count]))
    draw_curves(path, picture)
    assert picture.read_bytes().startswith(b"\x89PNG\r\n")
    assert [file.name for file in tmp_path.iterdir() if "tmp" in file.name] == []
