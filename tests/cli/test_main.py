"""Exit codes, error lines, and that help needs nothing heavy."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import sterna
from sterna.cli import main as cli
from sterna.errors import BackendError, UsageError
from support.tiny_checkpoint import write_tiny_checkpoint


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(write_tiny_checkpoint(tmp_path_factory.mktemp("tiny")))


def test_version(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"sterna {sterna.__version__}\n"


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    assert end.value.code == 0
    assert len(capsys.readouterr().out) > 200


def test_help_loads_nothing_heavy():
    code = (
        "import sys\nfrom sterna.cli.main import build_parser\nbuild_parser()\n"
        "print([m for m in ('torch', 'transformers', 'httpx', 'sterna.backends.native') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("argv", [[], ["nonsense"], ["run", "--top-k", "x"], ["run", "--max-tokens", "0"]])
def test_wrong_usage_is_exit_code_2(argv, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(argv)
    assert end.value.code == 2


@pytest.mark.parametrize(
    ("error", "code"), [(UsageError("bad", hint="do this"), 2), (BackendError("bad", hint="do this"), 1)]
)
def test_our_errors_print_two_lines(error, code, monkeypatch, capsys):
    def fail(args):
        raise error

    monkeypatch.setattr("sterna.cli.run.run", fail)
    assert cli.main(["run"]) == code
    assert capsys.readouterr().err == "error: bad\nhint: do this\n"


def test_interrupt_is_130(monkeypatch, capsys):
    def interrupt(args):
        raise KeyboardInterrupt

    monkeypatch.setattr("sterna.cli.run.run", interrupt)
    assert cli.main(["run"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_bad_variable_stops_every_command(monkeypatch, capsys):
    monkeypatch.setenv("STERNA_BACKENDS", "native")
    assert cli.main(["run", "-p", "x"]) == 2
    assert "hint: did you mean STERNA_BACKEND?" in capsys.readouterr().err


def test_run_streams_text_and_prints_json(tiny, capsys):
    base = ["run", "--model", tiny, "--backend", "numpy", "-p", "hello", "--seed", "1", "--max-tokens", "8"]
    assert cli.main([*base, "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["usage"]["completion_tokens"] <= 8
    assert cli.main(base) == 0
    assert capsys.readouterr().out == result["text"] + "\n"


def test_run_raw_continues_the_text(tiny, capsys):
    argv = ["run", "--raw", "--model", tiny, "--backend", "numpy", "-p", "a", "--preset", "greedy", "--max-tokens", "4"]
    assert cli.main(argv) == 0
    assert capsys.readouterr().out.endswith("\n")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["run", "-p", ""], "error: the prompt is empty"),
        (["run", "-p", "x", "--raw", "--system", "y"], "error: --system has no place in --raw"),
        (["run", "-p", "x", "--temperature", "-1"], "error: temperature is -1.0, allowed is 0.0 to 100.0"),
    ],
)
def test_bad_values_are_named(argv, message, tiny, capsys):
    assert cli.main([*argv, "--model", tiny, "--backend", "numpy"]) == 2
    assert message in capsys.readouterr().err


def test_overflow_names_both_numbers(tiny, capsys):
    argv = ["run", "-p", "word " * 400, "--model", tiny, "--backend", "numpy", "--max-model-len", "128"]
    assert cli.main(argv) == 1
    error = capsys.readouterr().err
    assert "tokens, context is 128\nhint: " in error
