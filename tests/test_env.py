"""The environment table: defaults, good and bad values, unknown names."""

from __future__ import annotations

from pathlib import Path

import pytest

from sterna import env
from sterna.errors import UsageError


def test_defaults_when_unset_or_empty():
    for variable in env.VARIABLES:
        assert env.get(variable.name, environ={}) == variable.default
        assert env.get(variable.name, environ={variable.name: ""}) == variable.default


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("STERNA_NUM_THREADS", "3", 3),
        ("STERNA_BACKEND", "numpy", "numpy"),
        ("STERNA_MODEL", "/x", Path("/x")),
        ("STERNA_NATIVE_VARIANT", "avx2", "avx2"),
    ],
)
def test_values_are_typed(name, text, value):
    assert env.get(name, environ={name: text}) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("STERNA_NUM_THREADS", "0"),
        ("STERNA_NUM_THREADS", "two"),
        ("STERNA_BACKEND", "cuda"),
        ("STERNA_NATIVE_VARIANT", "sse9"),
    ],
)
def test_bad_values_are_errors_that_say_what_is_allowed(name, text):
    with pytest.raises(UsageError, match=f"{name} is '{text}', allowed is "):
        env.check({name: text, "OTHER": "x"})


def test_unknown_names_are_errors_with_a_near_match():
    with pytest.raises(UsageError, match="STERNA_NUM_THREAD is not a variable of sterna") as error:
        env.check({"STERNA_NUM_THREAD": "2"})
    assert error.value.hint == "did you mean STERNA_NUM_THREADS?"


def test_other_variables_are_not_looked_at():
    env.check({"STERN": "x", "PATH": "y"})
