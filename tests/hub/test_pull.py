"""Pulls from a hub that behaves, and from one that does not."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from sterna.checkpoint import Checkpoint
from sterna.errors import CheckpointError, ConfigError, OutOfMemoryError, UsageError
from sterna.fit import this_machine
from sterna.hub.record import RECORD, pulled_checkpoints, read_record
from support.hub_double import COMMIT, Fault, HubDouble

WEIGHTS = "model.safetensors"
Usage = namedtuple("Usage", "total used free")


def contents(directory: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in directory.iterdir() if p.is_file() and p.name != RECORD}


def test_everything_arrives_and_is_recorded(tiny_files, pull_from) -> None:
    noise = {"pytorch_model.bin": b"pickle", "flax.msgpack": b"x", "figure.png": b"y", ".gitattributes": b"z"}
    with HubDouble({**tiny_files, **noise, "README.md": b"---\nlicense: apache-2.0\n---\n"}) as hub:
        result = pull_from(hub)
    assert contents(result.directory).keys() == {*tiny_files, "README.md"}
    assert contents(result.directory)[WEIGHTS] == tiny_files[WEIGHTS]
    record = read_record(result.directory)
    assert record is not None
    assert (record.repo_id, record.commit, record.licence) == ("owner/model", COMMIT, "apache-2.0")
    by_name = {file.path: file for file in record.files}
    for name, data in tiny_files.items():
        assert by_name[name].sha256 == hashlib.sha256(data).hexdigest()
        assert by_name[name].published is not None
    assert by_name[WEIGHTS].published == "sha256:" + by_name[WEIGHTS].sha256
    assert Checkpoint(result.directory).groups == {"text"}
    assert [p.directory for p in pulled_checkpoints(result.directory.parent)] == [result.directory]


def test_again_fetches_nothing(tiny_files, pull_from) -> None:
    with HubDouble(tiny_files) as hub:
        first = pull_from(hub)
        served = dict(hub.served)
        second = pull_from(hub)
        assert dict(hub.served) == served
    assert (first.fetched_bytes, second.fetched_bytes) == (len(tiny_files[WEIGHTS]), 0)


def test_an_interrupted_file_goes_on_where_it_stopped(tiny_files, pull_from, waited) -> None:
    with HubDouble(tiny_files, faults={WEIGHTS: Fault("interrupted", times=3, after=5000)}) as hub:
        result = pull_from(hub)
        assert hub.ranges_of(WEIGHTS) == [None, "bytes=5000-", "bytes=10000-", "bytes=15000-"]
    assert contents(result.directory)[WEIGHTS] == tiny_files[WEIGHTS]
    assert waited == [1.0, 1.0, 1.0]  # each attempt brought something, so the wait does not grow


def test_another_run_goes_on_where_the_first_gave_up(tiny_files, pull_from, tmp_path, waited) -> None:
    with HubDouble(tiny_files, faults={WEIGHTS: Fault("interrupted", times=1, after=7000)}) as hub:
        hub.faults["later"] = Fault("broken")
        first = hub.take_fault

        def fault(name: str) -> Fault | None:
            found = first(name)
            return found or (Fault("broken") if name == WEIGHTS and hub.served[WEIGHTS] else None)

        hub.take_fault = fault  # type: ignore[method-assign]
        with pytest.raises(CheckpointError, match="HTTP 418"):
            pull_from(hub)
        assert not (tmp_path / "models" / "owner--model" / RECORD).exists()
        assert pulled_checkpoints(tmp_path / "models") == []
        hub.take_fault = lambda name: None  # type: ignore[method-assign]
        result = pull_from(hub)
        assert hub.ranges_of(WEIGHTS)[-1] == "bytes=7000-"
    assert contents(result.directory)[WEIGHTS] == tiny_files[WEIGHTS]
    assert not (result.directory / ".partial").exists()


def test_a_server_without_ranges_starts_over(tiny_files, pull_from) -> None:
    faults = iter([Fault("interrupted", after=5000), Fault("no-ranges")])
    with HubDouble(tiny_files) as hub:
        hub.take_fault = lambda name: next(faults, None) if name == WEIGHTS else None  # type: ignore[method-assign]
        result = pull_from(hub)
    assert contents(result.directory)[WEIGHTS] == tiny_files[WEIGHTS]


def test_a_file_corrupted_once_is_fetched_again(tiny_files, pull_from) -> None:
    with HubDouble(tiny_files, faults={WEIGHTS: Fault("corrupt"), "tokenizer.json": Fault("corrupt")}) as hub:
        result = pull_from(hub)
        assert hub.ranges_of(WEIGHTS) == [None, None]
    assert contents(result.directory) == tiny_files


@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
def test_a_file_that_is_always_corrupt_is_refused(tiny_files, pull_from, tmp_path, name) -> None:
    words = f"{name} arrived 3 times with another content"
    faults = {name: Fault("corrupt", times=99)}
    with HubDouble(tiny_files, faults=faults) as hub, pytest.raises(CheckpointError, match=words) as error:
        pull_from(hub)
    assert error.value.hint and "mirror" in error.value.hint
    assert not (tmp_path / "models" / "owner--model" / name).exists()


def test_a_damaged_file_on_disk_is_noticed(tiny_files, pull_from) -> None:
    with HubDouble(tiny_files) as hub:
        result = pull_from(hub)
        path = result.directory / WEIGHTS
        path.write_bytes(b"\1" + path.read_bytes()[1:])
        pull_from(hub)
        assert path.read_bytes() == tiny_files[WEIGHTS]


def test_a_truncated_answer_is_completed(tiny_files, pull_from) -> None:
    with HubDouble(tiny_files, faults={WEIGHTS: Fault("truncated", times=2, after=4000)}) as hub:
        result = pull_from(hub)
        assert hub.ranges_of(WEIGHTS) == [None, "bytes=4000-", "bytes=8000-"]
    assert contents(result.directory)[WEIGHTS] == tiny_files[WEIGHTS]


def test_a_redirect_is_followed_without_the_token(tiny_files, pull_from, monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with HubDouble(tiny_files, faults={WEIGHTS: Fault("redirect", times=9)}) as hub:
        result = pull_from(hub)
        tokens = {path.startswith("/cdn/"): headers.get("authorization") for _, path, headers in hub.requests}
    assert tokens == {False: "Bearer hf_secret", True: None}
    assert contents(result.directory) == tiny_files


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Fault("busy", times=2), [7.0, 7.0]),
        (Fault("ratelimit", times=1), [11.0]),
        (Fault("busy", times=3, retry_after=None), [1.0, 2.0, 4.0]),
    ],
)
def test_a_busy_hub_is_given_the_time_it_asks_for(tiny_files, pull_from, waited, fault, expected) -> None:
    with HubDouble(tiny_files, faults={WEIGHTS: fault}) as hub:
        result = pull_from(hub)
    assert waited == expected
    assert contents(result.directory) == tiny_files


def test_a_busy_list_is_asked_again(tiny_files, pull_from, waited) -> None:
    with HubDouble(tiny_files, faults={"list": Fault("busy", times=2)}) as hub:
        pull_from(hub)
    assert waited == [7.0, 7.0]


@pytest.mark.parametrize("name", ["list", WEIGHTS])
def test_a_hub_that_stays_busy_is_given_up(tiny_files, pull_from, waited, name) -> None:
    with (
        HubDouble(tiny_files, faults={name: Fault("busy", times=99)}) as hub,
        pytest.raises(CheckpointError, match="429") as error,
    ):
        pull_from(hub)
    assert len(waited) == 5
    assert error.value.hint and "same command again" in error.value.hint


@pytest.mark.parametrize(
    ("options", "faults", "error", "words", "hint"),
    [
        ({"repo_id": "owner/other"}, {}, CheckpointError, "has no repository owner/other", "HF_TOKEN"),
        ({"repo_id": "not a name"}, {}, UsageError, "is not the name of a repository", "OWNER/NAME"),
        ({"revision": "v9"}, {}, CheckpointError, "has no revision 'v9'", "--revision"),
        ({}, {"list": Fault("gated")}, CheckpointError, "is gated", "agree at"),
        ({}, {"list": Fault("nonsense")}, CheckpointError, "cannot reach", "--from DIR"),
        ({}, {WEIGHTS: Fault("forbidden", times=9)}, CheckpointError, "does not let you have", "HF_TOKEN"),
        ({}, {WEIGHTS: Fault("gone", times=9)}, CheckpointError, "has no such file", "HF_ENDPOINT"),
        ({"files": ("nothing*",)}, {}, UsageError, "has no file 'nothing\\*'", WEIGHTS),
        ({"endpoint": "http://127.0.0.1:9"}, {}, CheckpointError, "cannot reach", "HF_ENDPOINT"),
    ],
)
def test_what_the_hub_refuses_is_said_in_a_sentence(tiny_files, pull_from, options, faults, error, words, hint) -> None:
    with HubDouble(tiny_files, faults=faults) as hub, pytest.raises(error, match=words) as raised:
        pull_from(hub, **options)
    assert raised.value.hint and hint in raised.value.hint


def test_another_architecture_is_refused_before_its_weights(tiny_files, pull_from, tmp_path) -> None:
    with HubDouble({**tiny_files, "config.json": b'{"model_type": "llama"}'}) as hub:
        with pytest.raises(ConfigError, match="llama"):
            pull_from(hub)
        assert hub.served[WEIGHTS] == 0
    assert not (tmp_path / "models" / "owner--model").exists()


def test_what_does_not_fit_is_refused_unless_asked_for(tiny_files, pull_from) -> None:
    with HubDouble(tiny_files) as hub:
        with pytest.raises(OutOfMemoryError, match="does not fit") as error:
            pull_from(hub, hardware=this_machine(1000))
        assert hub.served[WEIGHTS] == 0
        assert error.value.hint and "--ignore-fit" in error.value.hint
        result = pull_from(hub, hardware=this_machine(1000), ignore_fit=True)
    assert result.plan is not None and result.plan.fits is False
    assert contents(result.directory) == tiny_files


def test_a_full_disk_is_noticed_before_the_weights(tiny_files, pull_from, monkeypatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9 - 1000, 1000))
    with HubDouble(tiny_files) as hub:
        with pytest.raises(CheckpointError, match="left, .* are needed") as error:
            pull_from(hub)
        assert hub.served[WEIGHTS] == 0
    assert error.value.hint and "--into" in error.value.hint


def test_a_dry_run_leaves_nothing(tiny_files, pull_from, tmp_path) -> None:
    with HubDouble(tiny_files) as hub:
        result = pull_from(hub, dry_run=True)
        assert hub.served[WEIGHTS] == 0
    assert {file.path for file in result.record.files} == set(tiny_files)
    assert not (tmp_path / "models" / "owner--model").exists()


def sharded(files: dict[str, bytes], vision: bytes = b"") -> dict[str, bytes]:
    """The tiny checkpoint with an index over its one file and perhaps a second one of vision tensors."""
    header = json.loads(files[WEIGHTS][8 : 8 + int.from_bytes(files[WEIGHTS][:8], "little")])
    names = [name for name in header if name != "__metadata__"]
    weight_map = {name: "model-00001-of-00002.safetensors" for name in names}
    weight_map["model.visual.pos_embed.weight"] = "model-00002-of-00002.safetensors"
    index = json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}).encode()
    rest = {name: data for name, data in files.items() if name != WEIGHTS}
    return {
        **rest, "model.safetensors.index.json": index, "model-00001-of-00002.safetensors": files[WEIGHTS],
        "model-00002-of-00002.safetensors": vision, "preprocessor_config.json": b"{}",
    }  # fmt: skip


def test_text_only_leaves_out_files_of_vision_tensors_alone(tiny_files, pull_from) -> None:
    with HubDouble(sharded(tiny_files, b"v" * 500)) as hub:
        result = pull_from(hub, text_only=True)
        assert hub.served["model-00002-of-00002.safetensors"] == 0
    assert not {"model-00002-of-00002.safetensors", "preprocessor_config.json"} & contents(result.directory).keys()
    assert Checkpoint(result.directory).groups == {"text"}
    assert result.record.text_only and any("left out" in note for note in result.notes)


def test_text_only_says_when_nothing_can_be_left_out(tiny_files, pull_from) -> None:
    with HubDouble(tiny_files) as hub:
        assert any("no file holds vision tensors alone" in note for note in pull_from(hub, text_only=True).notes)


def test_an_index_that_names_a_missing_shard(tiny_files, pull_from) -> None:
    files = sharded(tiny_files)
    del files["model-00002-of-00002.safetensors"]
    with HubDouble(files) as hub, pytest.raises(CheckpointError, match="names model-00002-of-00002.safetensors"):
        pull_from(hub)


def test_an_index_beside_a_single_file(tiny_files, pull_from) -> None:
    with HubDouble({**sharded(tiny_files), WEIGHTS: b"x"}) as hub, pytest.raises(CheckpointError, match="holds both"):
        pull_from(hub)


def test_a_repository_of_pickles(tiny_files, pull_from) -> None:
    files = {name: data for name, data in tiny_files.items() if name != WEIGHTS}
    with (
        HubDouble({**files, "pytorch_model.bin": b"x"}) as hub,
        pytest.raises(CheckpointError, match="neither model.safetensors nor"),
    ):
        pull_from(hub)


def test_a_path_out_of_the_directory_is_refused(tiny_files, pull_from) -> None:
    with (
        HubDouble({**tiny_files, "../../evil": b"x"}) as hub,
        pytest.raises(CheckpointError, match="allowed are paths"),
    ):
        pull_from(hub)
