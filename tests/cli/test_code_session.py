"""``sterna code`` as a conversation: /commands, approval, notes, records, undo; the model is scripted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from sterna.cli import code_prompt
from sterna.cli import main as cli
from support.scripted_llm import ScriptedLLM
from support.scripted_model import call, turn


def create(path: str, text: str):
    return turn(call("str_replace_editor", command="create", path=path, file_text=text))


DONE = turn(call("submit"))


@pytest.fixture
def project(tmp_path):
    directory = tmp_path / "project"
    directory.mkdir()
    (directory / "a.txt").write_text("one\n")
    return directory


@pytest.fixture
def code(monkeypatch, tmp_path, project):
    """Runs `sterna code` with these turns of the model and these lines of the user; gives the code and the model."""
    monkeypatch.setenv("STERNA_HOME", str(tmp_path / "home"))

    def run(*turns, lines=(), argv=()):
        llm = ScriptedLLM(*turns)
        monkeypatch.setattr("sterna.cli.code.load_llm", lambda args: llm)
        left = iter(lines)

        def read(prompt=""):
            try:
                return next(left)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr("builtins.input", read)
        return cli.main(["code", "--directory", str(project), *argv]), llm

    return run


def test_undo_goes_back_one_task_at_a_time(code, project, capsys):
    turns = (create("b.txt", "1"), DONE, create("b.txt", "2"), DONE)
    assert code(*turns, lines=["first", "second", "/diff", "/undo"])[0] == 0
    assert (project / "b.txt").read_text() == "1"
    assert "+2" in capsys.readouterr().out
    assert cli.main(["code", "--directory", str(project), "--undo"]) == 0
    assert not (project / "b.txt").exists()
    assert cli.main(["code", "--directory", str(project), "--undo"]) == 2


def test_what_the_user_refuses_does_not_happen(code, project):
    turns = (create("b.txt", "1"), create("c.txt", "1"), DONE)
    _, llm = code(*turns, lines=["task", "no, use c.txt", "y"], argv=["--approve", "ask"])
    assert not (project / "b.txt").exists() and (project / "c.txt").exists()
    assert llm.requests[1].messages[-1].content == "error: the user refused this call: no, use c.txt"


def test_a_task_from_the_command_line_cannot_destroy_work(code, project, monkeypatch):
    (project / "src").mkdir()
    code(turn(call("bash", command="rm -rf src")), DONE, argv=["clean up"])
    assert (project / "src").is_dir()


def test_the_mode_changes_in_the_middle(code, project, capsys):
    turns = (create("b.txt", "1"), turn(text="a plan"))
    code(
        *turns,
        lines=["/mode plan", "task", "/mode", "/mode never", "/context", "/help", "/nonsense", "/quit", "not reached"],
    )
    out = capsys.readouterr().out
    assert not (project / "b.txt").exists()
    assert "mode: plan" in out and "mode is 'never', allowed are ask, auto-edit, sandboxed, plan" in out
    assert "of 1,000 tokens" in out and "/undo" in out and "/nonsense is not known" in out


def test_notes_of_the_project_are_a_part_of_the_system_message(code, project):
    (project / "AGENTS.md").write_text("Indent with tabs.\n")
    _, llm = code(DONE, argv=["task"])
    assert llm.requests[0].messages[0].content.endswith("# Notes of this project (AGENTS.md)\n\nIndent with tabs.")
    _, llm = code(DONE, argv=["task", "--no-notes"])
    assert "tabs" not in llm.requests[0].messages[0].content


def test_notes_that_are_no_text_are_an_error(code, project, capsys):
    (project / "AGENTS.md").symlink_to("/etc/passwd")
    assert code(argv=["task"])[0] == 1
    assert "the notes of the project cannot be used" in capsys.readouterr().err


def test_a_run_goes_on_where_it_ended(code, project, capsys):
    code(create("b.txt", "1"), DONE, argv=["remember this"])
    _, llm = code(DONE, argv=["and then?", "--resume"])
    contents = [message.content for message in llm.requests[0].messages]
    assert "remember this" in contents and contents[-1] == "and then?"
    capsys.readouterr()
    assert cli.main(["code", "--directory", str(project), "--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert len(listed) == 2 and "remember this" in listed[1] and "submitted" in listed[0]


def test_a_run_of_another_directory_is_not_resumed(code, project, tmp_path, capsys):
    code(DONE, argv=["task", "--trajectory", str(tmp_path / "run.json")])
    record = json.loads((tmp_path / "run.json").read_text())
    record["workspace"] = "/elsewhere"
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert code(argv=["task", "--resume", str(tmp_path / "run.json")])[0] == 2
    assert "is a run in /elsewhere" in capsys.readouterr().err
    assert code(argv=["task", "--resume"])[0] == 2


def test_mentioned_files_are_named_to_the_model(code, project):
    _, llm = code(DONE, argv=["fix @a.txt, not @missing.txt or @../../etc/passwd or me@a.txt"])
    assert llm.requests[0].messages[1].content.endswith("\n\nFiles named above: a.txt")


def test_completion_of_commands_and_files(project: Path):
    (project / "sub").mkdir()
    (project / "sub" / "Deep.py").write_text("")
    (project / ".hidden").write_text("")
    completer = code_prompt._completer({"/undo": "back"}, lambda: code_prompt.project_files(project))

    def complete(text: str) -> list[str]:
        return [item.text for item in completer.get_completions(Document(text), CompleteEvent())]

    assert complete("/un") == ["/undo"] and complete("/undo x") == []
    assert complete("look at @dee") == ["sub/Deep.py"]
    assert complete("@") == ["a.txt", "sub/Deep.py"] and complete("mail me@a") == []
