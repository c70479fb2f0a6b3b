"""Pulls from a directory, the meter, and which checkpoint the other commands find."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from sterna import locate
from sterna.errors import CheckpointError, UsageError
from sterna.hub import pull_directory, pulled_checkpoints
from sterna.hub.known import known_checkpoint
from sterna.hub.meter import Meter, duration
from sterna.hub.record import RECORD, read_record

WEIGHTS = "model.safetensors"


@pytest.fixture
def source(tiny_files, tmp_path) -> Path:
    directory = tmp_path / "stick"
    directory.mkdir()
    for name, data in tiny_files.items():
        (directory / name).write_bytes(data)
    return directory


def take(source: Path, tmp_path: Path, **options):
    return pull_directory(source, tmp_path / "models", say=lambda text: None, **options)


def test_a_directory_is_taken_over(source, tmp_path, tiny_files) -> None:
    (source / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    (source / "pytorch_model.bin").write_text("pickle")
    result = take(source, tmp_path)
    assert {p.name for p in result.directory.iterdir()} == {*tiny_files, "README.md", RECORD}
    assert result.record.licence == "apache-2.0"
    assert result.notes and "no published hash is known" in result.notes[0]
    assert (result.directory / WEIGHTS).stat().st_ino == (source / WEIGHTS).stat().st_ino


def test_sums_beside_the_files_are_checked(source, tmp_path, tiny_files) -> None:
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in tiny_files.items()}
    (source / "SHA256SUMS").write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()))
    result = take(source, tmp_path)
    assert not result.notes and all(file.published for file in result.record.files)
    (source / "config.json").write_bytes(tiny_files["config.json"] + b"\n")
    with pytest.raises(CheckpointError, match="published is"):
        take(source, tmp_path, into=tmp_path / "again")
    assert not (tmp_path / "again" / RECORD).exists()


def test_a_hub_cache_names_its_hashes(source, tmp_path, tiny_files) -> None:
    cache = tmp_path / "cache"
    (cache / "blobs").mkdir(parents=True)
    (cache / "snapshot").mkdir()
    for name, data in tiny_files.items():
        blob = (
            hashlib.sha256(data).hexdigest()
            if name == WEIGHTS
            else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        )
        (cache / "blobs" / blob).write_bytes(data)
        os.symlink(cache / "blobs" / blob, cache / "snapshot" / name)
    result = take(cache / "snapshot", tmp_path)
    assert not result.notes
    stored = (cache / "snapshot" / WEIGHTS).resolve()
    stored.write_bytes(b"\1" + stored.read_bytes()[1:])
    with pytest.raises(CheckpointError, match="SHA-256"):
        take(cache / "snapshot", tmp_path, into=tmp_path / "again")


def test_what_claims_to_be_official_must_be(source, tmp_path) -> None:
    with pytest.raises(CheckpointError, match="published is"):
        take(source, tmp_path, repo_id="Qwen/Qwen3.6-35B-A3B")


@pytest.mark.parametrize("missing", ["config.json", WEIGHTS])
def test_a_missing_file(source, tmp_path, missing) -> None:
    (source / missing).unlink()
    with pytest.raises(CheckpointError, match=missing):
        take(source, tmp_path)


def test_not_a_directory(tmp_path) -> None:
    with pytest.raises(UsageError, match="allowed is a directory"):
        take(tmp_path / "nowhere", tmp_path)


def test_the_official_hashes() -> None:
    known = known_checkpoint("Qwen/Qwen3.6-35B-A3B")
    assert known is not None and len([name for name in known.sha256 if name.endswith(".safetensors")]) == 26
    # the tensors take 71,903,645,408 bytes; what is left are 26 headers
    assert 0 < sum(known.sizes.values()) - 71_903_645_408 < 26 * 20_000
    # the list as its publisher prints it has a published hash of its own
    ordered = sorted(known.sha256, key=lambda name: (name.startswith("model-"), name))
    text = "".join(f"{known.sha256[name]}  {name}\n" for name in ordered)
    assert (
        hashlib.sha256(text.encode()).hexdigest() == "1378d1bb153694b13c20641fa5d2485dede401d1ce4c267953ba4a855fc59e7e"
    )
    assert known_checkpoint("Qwen/Qwen3.6-35B-A3B", "0" * 40) is None


def test_the_newest_that_fits_is_found(source, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("STERNA_HOME", str(tmp_path))
    monkeypatch.delenv("STERNA_MODEL", raising=False)
    take(source, tmp_path, repo_id="a/old")
    take(source, tmp_path, repo_id="a/new")
    assert [p.directory.name for p in pulled_checkpoints(tmp_path / "models")] == ["a--new", "a--old"]
    assert locate.locate_model().name == "a--new"
    monkeypatch.setattr(locate, "available_host_bytes", lambda: 1000)
    found = locate.locate_model()
    assert found.name == "sternula" and "a--new does not fit" in found.description


def test_an_unfinished_pull_is_no_checkpoint(source, tmp_path) -> None:
    result = take(source, tmp_path)
    (result.directory / RECORD).unlink()
    (result.directory / ".partial").mkdir()
    assert pulled_checkpoints(tmp_path / "models") == []


def test_a_damaged_record_is_an_error(source, tmp_path) -> None:
    result = take(source, tmp_path)
    for text in ("{", "[]", '{"version": 2, "files": []}', '{"version": 1, "files": [{}]}'):
        (result.directory / RECORD).write_text(text)
        with pytest.raises(CheckpointError, match="cannot be read"):
            read_record(result.directory)


def test_the_meter_knows_rate_and_time_left() -> None:
    now = [0.0]
    meter = Meter(100_000_000, clock=lambda: now[0])
    assert meter.line() == "0.0 of 100.0 MB"
    meter.skip(20_000_000)
    now[0] = 2.0
    meter.add(40_000_000)
    assert meter.rate() == 20e6 and meter.seconds_left() == 2.0
    assert meter.line() == "60.0 of 100.0 MB, 20.0 MB/s, 2 s left"
    now[0] = 100.0
    meter.add(0)
    meter.add(0)
    assert meter.rate() == 0.0 and meter.seconds_left() is None
    assert [duration(s) for s in (40.4, 660, 12_000)] == ["40 s", "11 min", "3 h 20 min"]
