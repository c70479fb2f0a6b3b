"""``sterna sessions`` on conversations of a tiny random model."""

from __future__ import annotations

import json

import pytest

from sterna.chat.messages import ChatRequest, Message
from sterna.cli import main as cli
from sterna.config import EngineConfig
from sterna.llm import LLM
from sterna.types import SamplingParams
from support.tiny_checkpoint import write_tiny_checkpoint

TALK = "tell me about the parser " * 20


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def stored(checkpoint, tmp_path, monkeypatch):
    """Two conversations under a key, stored by a process that ended."""
    monkeypatch.setenv("STERNA_HOME", str(tmp_path))
    monkeypatch.setenv("STERNA_NUM_THREADS", "1")
    config = EngineConfig(max_model_len=2048)
    with LLM.load(checkpoint, backend="native", engine_config=config, sessions=tmp_path / "sessions") as llm:
        for text in ("first: " + TALK, "second: " + TALK):
            request = ChatRequest((Message("user", text),), sampling=SamplingParams(seed=1, max_tokens=8))
            list(llm.chat(request, namespace="some key"))


def sterna(capsys, *argv):
    assert cli.main(["sessions", *argv]) == 0
    return capsys.readouterr()


def listed(capsys):
    return json.loads(sterna(capsys, "list", "--json").out.splitlines()[-1])["sessions"]


def test_list_and_size(stored, capsys):
    rows = listed(capsys)
    assert len(rows) == 2
    assert all(row["model"] == "tiny" and row["tokens"] > 256 for row in rows)
    size = json.loads(sterna(capsys, "size", "--json").out.splitlines()[-1])
    assert size["sessions"] == 2 and size["bytes"] > 0
    assert rows[0]["id"] in sterna(capsys, "list").out


def test_resume_reads_nothing_again(stored, checkpoint, capsys):
    row = listed(capsys)[0]
    flags = ["-p", "go on", "--model", str(checkpoint), "--max-tokens", "4", "--seed", "1", "--json"]
    done = sterna(capsys, "resume", row["id"][:6], *flags)
    usage = json.loads(done.out.splitlines()[-1])["usage"]
    assert usage["cached_tokens"] == row["tokens"]
    assert usage["computed_tokens"] < 60
    assert "second: tell me about" in done.err
    after = listed(capsys)
    assert after[0]["id"] == row["id"] and after[0]["tokens"] > row["tokens"]


def test_fork_goes_its_own_way(stored, checkpoint, capsys):
    row = listed(capsys)[1]
    fork = sterna(capsys, "fork", row["id"]).out.strip()
    flags = ["-p", "go on", "--model", str(checkpoint), "--max-tokens", "4", "--seed", "1"]
    sterna(capsys, "resume", fork, *flags)
    tokens = {each["id"]: each["tokens"] for each in listed(capsys)}
    assert tokens[fork] > tokens[row["id"]] == row["tokens"]
    sterna(capsys, "resume", row["id"], "-p", "no, stop", *flags[2:])
    tokens = {each["id"]: each["tokens"] for each in listed(capsys)}
    assert len(tokens) == 3 and tokens[row["id"]] > row["tokens"]


def test_delete_one_and_all(stored, capsys):
    rows = listed(capsys)
    assert "deleted 1 sessions" in sterna(capsys, "delete", rows[0]["id"]).out
    assert [row["id"] for row in listed(capsys)] == [rows[1]["id"]]
    sterna(capsys, "delete", "all")
    assert sterna(capsys, "list").out == "no sessions are stored\n"
    assert json.loads(sterna(capsys, "size", "--json").out)["bytes"] == 0


def test_another_model_is_refused(stored, tmp_path, capsys):
    other = write_tiny_checkpoint(tmp_path / "other", seed=1)
    row = listed(capsys)[0]
    assert cli.main(["sessions", "resume", row["id"], "-p", "x", "--model", str(other)]) == 1
    err = capsys.readouterr().err
    assert f"session {row['id']} belongs to tiny, the loaded model is other" in err
    assert "hint: name its checkpoint directory" in err


@pytest.mark.parametrize("argv", [["resume"], ["list", "x"], ["delete"], ["fork"]])
def test_an_id_where_it_belongs(argv, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("STERNA_HOME", str(tmp_path))
    assert cli.main(["sessions", *argv]) == 2
    assert "hint: `sterna sessions list` shows the ids" in capsys.readouterr().err
