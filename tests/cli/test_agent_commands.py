"""``code``, ``chat``, ``demo`` and ``eval`` with a scripted model; tools and tests run for real."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sterna.cli import main as cli
from sterna.evals.small_bugs.splits import split_projects
from support.scripted_llm import ScriptedLLM
from support.scripted_model import call, turn

FIX = call(
    "str_replace_editor", command="str_replace", path="stats.py",
    old_str="value < best", new_str="value > best",
)  # fmt: skip


@pytest.fixture
def scripted(monkeypatch, tmp_path):
    monkeypatch.setenv("STERNA_HOME", str(tmp_path / "home"))

    def use(*turns):
        llm = ScriptedLLM(*turns)
        for module in ("code", "demo", "chat", "eval"):
            monkeypatch.setattr(f"sterna.cli.{module}.load_llm", lambda args: llm)
        return llm

    return use


@pytest.fixture
def project(tmp_path):
    directory = tmp_path / "project"
    directory.mkdir()
    (directory / "a.txt").write_text("one\ntwo\n")
    return directory


def last_json(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_code_edits_and_reports(scripted, project, capsys):
    edit = call("str_replace_editor", command="str_replace", path="a.txt", old_str="two", new_str="three")
    llm = scripted(turn(edit, reasoning="hm"), turn(call("submit")))
    code = cli.main(["code", "change it", "--directory", str(project), "--json", "--seed", "5"])
    result = last_json(capsys)
    assert code == 0
    assert result["outcome"] == "submitted"
    assert result["diff"] == "--- a/a.txt\n+++ b/a.txt\n@@ -1,2 +1,2 @@\n one\n-two\n+three\n"
    assert llm.requests[0].sampling.seed == 5
    assert llm.requests[0].preserve_thinking and llm.requests[0].enable_thinking
    record = json.loads(Path(result["trajectory"]).read_text())
    assert record["settings"]["preset"] == "agent"


def test_code_streams_what_happens(scripted, project, capsys):
    scripted(turn(call("bash", command="echo o''k; printf '\\033[2J'"), reasoning="let me see"), turn(call("submit")))
    assert cli.main(["code", "look", "--directory", str(project)]) == 0
    out = capsys.readouterr().out
    assert "let me see" in out
    assert "$ echo o''k" in out
    assert "ok" in out
    assert "\x1b[2J" not in out and "\\x1b[2J" in out
    assert "no file changed" in out


def test_code_at_a_limit_is_exit_code_1(scripted, project, capsys):
    scripted(turn(call("bash", command="true")), turn(call("bash", command="true")))
    assert cli.main(["code", "look", "--directory", str(project), "--max-steps", "1", "--json"]) == 1
    assert last_json(capsys)["outcome"] == "step_limit"


def test_code_asks_for_tasks_until_end_of_input(scripted, project, monkeypatch, capsys):
    scripted(turn(text="first"), turn(text="second"))
    lines = iter(["one", "two"])

    def answer(prompt):
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", answer)
    assert cli.main(["code", "--directory", str(project)]) == 0
    out = capsys.readouterr().out
    assert "first" in out and "second" in out


def test_chat_keeps_the_history(scripted, monkeypatch, capsys):
    llm = scripted(turn(text="hello"), turn(text="again"))
    lines = iter(["hi", "more", "/exit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    assert cli.main(["chat", "--system", "be brief"]) == 0
    assert [m.role for m in llm.requests[1].messages] == ["system", "user", "assistant", "user"]
    assert "again" in capsys.readouterr().out


def test_demo_passes_when_the_bug_is_fixed(scripted, capsys):
    scripted(turn(call("bash", command="cat stats.py")), turn(FIX), turn(call("submit")))
    assert cli.main(["demo", "--json"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out.splitlines()[-1])
    assert result["passed"] is True
    assert "+        if value > best:" in result["diff"]
    assert "AssertionError" in captured.err and "OK" in captured.err


def test_demo_is_not_fooled_by_changed_tests(scripted, capsys):
    cheat = call(
        "bash",
        command="printf 'import unittest\\nclass T(unittest.TestCase):\\n def test(self): pass\\n' > test_stats.py",
    )
    scripted(turn(cheat), turn(call("submit")))
    assert cli.main(["demo", "--json"]) == 1
    assert last_json(capsys)["passed"] is False


def test_eval_counts_resumes_and_refuses_other_settings(scripted, tmp_path, capsys):
    argv = ["eval", "small-bugs", "--limit", "2", "--out", str(tmp_path / "out"), "--json"]
    first = split_projects("unseen-instances", limit=1)[0]
    fix = call(
        "str_replace_editor", command="create", path=first.path, file_text=first.fixed_files[first.path]
    )  # fmt: skip
    scripted(turn(fix), turn(call("submit")), turn(call("submit")))
    assert cli.main(argv) == 0
    result = last_json(capsys)
    assert (result["n"], result["passed"], result["errors"]) == (2, 1, 0)
    assert result["ci95"][0] < 0.5 < result["ci95"][1]
    assert len(list((tmp_path / "out" / "trajectories").glob("*.json"))) == 2
    scripted()
    assert cli.main(argv) == 0
    assert last_json(capsys)["passed"] == 1
    assert cli.main([*argv, "--temperature", "0.5"]) == 2
    assert "holds a run with temperature = 1.0, this one has 0.5" in capsys.readouterr().err


def test_the_baseline_repairs_some_projects_and_says_how(tmp_path, capsys):
    argv = ["eval", "small-bugs", "--baseline", "random-mutation", "--limit", "2", "--attempts", "3", "--json"]
    assert cli.main([*argv, "--out", str(tmp_path)]) == 0
    result = last_json(capsys)
    assert result["settings"]["attempts"] == 3
    assert result["n"] == 2
