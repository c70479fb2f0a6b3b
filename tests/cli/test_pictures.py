"""Pictures on the command line: flags, mentions, and what goes wrong with them."""

from __future__ import annotations

import json

import pytest

from sterna.cli import main as cli
from sterna.cli.pictures import mentioned
from sterna.errors import UsageError
from support.pictures import png
from support.tiny_checkpoint import write_tiny_checkpoint


@pytest.fixture(scope="module")
def seeing(tmp_path_factory):
    return str(write_tiny_checkpoint(tmp_path_factory.mktemp("seeing"), vision=True))


def run_json(arguments, capsys):
    assert (
        cli.main(["run", "--preset", "greedy", "--max-tokens", "3", "--max-model-len", "512", "--json", *arguments])
        == 0
    )
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_run_shows_images(seeing, tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(png(64, 64))
    plain = run_json(["--model", seeing, "-p", "hello"], capsys)
    shown = run_json(["--model", seeing, "-p", "hello", "--image", str(tmp_path / "a.png")], capsys)
    assert shown["usage"]["prompt_tokens"] == plain["usage"]["prompt_tokens"] + 6


def test_a_tower_of_its_own_has_no_second_one_beside_it(seeing, tmp_path, capsys):
    assert cli.main(["run", "--model", seeing, "--mmproj", str(tmp_path / "x.gguf"), "-p", "hello"]) == 2
    assert "--mmproj has no place" in capsys.readouterr().err


def test_the_built_in_model_says_that_it_cannot_see(tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(png(64, 64))
    assert cli.main(["run", "-p", "what is it", "--image", str(tmp_path / "a.png")]) == 2
    error = capsys.readouterr().err
    assert "has no vision weights and cannot see the image" in error and "hint:" in error


def test_files_that_cannot_be_shown(seeing, tmp_path, capsys):
    (tmp_path / "bad.png").write_bytes(b"no image at all")
    assert cli.main(["run", "--model", seeing, "-p", "x", "--image", str(tmp_path / "none.png")]) == 2
    assert "cannot be read (No such file or directory)" in capsys.readouterr().err
    assert cli.main(["run", "--model", seeing, "-p", "x", "--image", str(tmp_path / "bad.png")]) == 2
    assert "not an image of a known format" in capsys.readouterr().err
    assert cli.main(["run", "--model", seeing, "--raw", "-p", "x", "--image", str(tmp_path / "bad.png")]) == 2


def test_chat_goes_on_after_a_picture_that_is_refused(seeing, tmp_path, monkeypatch, capsys):
    (tmp_path / "bad.png").write_bytes(b"no image at all")
    (tmp_path / "a.png").write_bytes(png(64, 64))
    lines = iter([f"what is @{tmp_path}/bad.png", f"and @{tmp_path}/missing.png", f"and @{tmp_path}/a.png ?"])

    def answer(prompt):
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", answer)
    flags = ["--model", seeing, "--preset", "greedy", "--max-tokens", "3", "--max-model-len", "512"]
    assert cli.main(["chat", *flags]) == 0
    captured = capsys.readouterr()
    assert "not an image of a known format" in captured.err and "missing.png cannot be read" in captured.err
    assert captured.out.count("tokens written") == 1


def test_mentions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").write_bytes(b"A")
    (tmp_path / "my clip.mp4").write_bytes(b"B")
    assert (
        mentioned("mail me@home.png or ask @someone about @decorators")
        == "mail me@home.png or ask @someone about @decorators"
    )
    assert mentioned('compare @a.png and @"my clip.mp4"') == [
        {"type": "text", "text": "compare "},
        {"type": "image", "data": b"A"},
        {"type": "text", "text": " and "},
        {"type": "video", "data": b"B"},
    ]
    with pytest.raises(UsageError, match="gone.PNG cannot be read"):
        mentioned("@gone.PNG")
