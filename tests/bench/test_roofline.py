"""The limits are measured, not made up: orders of magnitude that any machine reaches, and none surpasses."""

from __future__ import annotations

import pytest

from sterna.bench import roofline
from sterna.bench.machine import describe_machine, resident_bytes
from sterna.bench.roofline import Roofline, float_peak, measure_host


def test_host_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "READ_BYTES", 1 << 24)
    measured = measure_host(2, peak=5.0)
    assert 1e7 < measured.read_bytes_per_second < 1e13
    assert (measured.peak, measured.peak_kind) == (5.0, "float32")
    assert 1e7 < float_peak(1) < 1e14


def test_mean_of_two() -> None:
    assert Roofline(2.0, 10.0, "int8").mean(Roofline(4.0, 20.0, "int8")) == Roofline(3.0, 15.0, "int8")
    assert Roofline(2.0, None, "int8").mean(Roofline(4.0, 20.0, "int8")).peak is None


def test_machine_is_described_without_names() -> None:
    machine = describe_machine()
    assert machine["cpus"] >= 1 and machine["processor"]
    assert not {"host", "hostname", "user"} & set(machine)
    assert resident_bytes() > 1 << 20
