"""What a hostile template can not do."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sterna.chat.jinja_sandbox import SandboxedTemplate
from sterna.errors import TemplateError


def run(source: str, *, time_limit_s: float = 0.3, output_limit: int = 100_000, **variables: Any) -> str:
    return SandboxedTemplate(source).render(
        variables, to_json=json.dumps, time_limit_s=time_limit_s, output_limit=output_limit
    )


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f() %}{% for a in range(99999) %}{{ f() }}{% endfor %}{% endmacro %}{{ f() }}",
        "{% for a in range(99999) recursive %}{% if loop.depth < 9 %}{{ loop(range(99999)) }}{% endif %}{% endfor %}",
    ],
)
def test_time_is_limited(source: str) -> None:
    with pytest.raises(TemplateError, match=r"ran longer than 0\.3 s|recursion"):
        run(source)


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(9999) %}{{ 'x' * 99 }}{% endfor %}",
        "{{ 'x' * 999999999999 }}",
        "{{ 999999999999 * 'x' }}",
        "{% set l = [0] * 999999999999 %}",
        "{{ 10 ** 9999999999 }}",
        "{% set n = namespace(x='xx') %}{% for a in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "{% set n = namespace(x='xx') %}{% for a in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
        "{% set n = namespace(x='xx') %}{% for a in range(99) %}{% set n.x = n.x.replace('x', n.x) %}{% endfor %}",
        "{% set n = namespace(x='xx') %}{% for a in range(99) %}{% set n.x = [n.x, n.x].__add__([]) %}{% endfor %}",
        "{{ [['x' * 9000] * 99] * 99 }}",
        "{{ ([['x' * 9000] * 99] * 99) | string }}",
        "{{ ([['x' * 9000] * 99] * 99) | tojson }}",
        "{{ (['x' * 9000] * 99) | join }}",
        "{{ ('x' * 9000) | replace('x', 'y' * 9000) }}",
        "{% set n = namespace(x=[1]) %}{% for a in range(99) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
        "{{ ('x' * 90000).join(['a', 'b', 'c', 'd']) }}",
    ],
)
def test_size_is_limited(source: str) -> None:
    with pytest.raises(TemplateError):
        run(source, time_limit_s=20)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ (lambda: 1)() }}",
        "{{ messages.append(1) }}",
        "{% include 'x' %}",
        "{% import 'os' as os %}",
        "{{ 'x'.ljust(999999999) }}",
        "{{ 'x'.center(999999999) }}",
        "{{ '{:>999999999}'.format(1) }}",
        "{{ '%999999999d' % 1 }}",
        "{{ 'x' | center(999999999) }}",
        "{{ 'x' | indent(999999999) }}",
        "{{ lipsum(9999999) }}",
        "{{ cycler }}{{ cycler('a') }}",
        "{{ raise_exception('by name') }}",
        "{{ [1] | tojson(indent=999999999) }}",
        "{{ nothing.at.all }}",
        "{% if %}",
    ],
)
def test_what_is_not_there(source: str) -> None:
    with pytest.raises(TemplateError):
        run(source, messages=[])


def test_what_is_there() -> None:
    assert run("{{ [1, 'é'] | tojson }}") == '[1, "é"]'
    assert run("{{ {'b': 1, 'a': 2} | tojson }}") == '{"b": 1, "a": 2}'
    assert run("{{ 7 % 4 }} {{ 2 ** 5 }} {{ 3 * 'ab' }} {{ [1] + [2] }} {{ 1 ~ 'x' ~ 2 }}") == "3 32 ababab [1, 2] 1x2"
    assert run("{% for a in [1, 2, 3] %}{% if a == 2 %}{% continue %}{% endif %}{{ a }}{% endfor %}") == "13"
    assert run("  {% if true %}\nx\n  {% endif %}\ny") == "x\ny"
    assert (
        run("{{ ['a', 1] | join(', ') }}{{ 'aXb' | replace('X', '-') }}{{ 1 | string }}{{ [1, 'a'] }}")
        == "a, 1a-b1[1, 'a']"
    )
    assert run("{{ 'a,b'.split(',') }}{{ ' x ' | trim }}{{ 'abc'.startswith('ab') }}") == "['a', 'b']xTrue"


def test_refusal_is_passed_on_with_its_words() -> None:
    with pytest.raises(TemplateError, match="refuses the conversation: no cats"):
        run("{{ raise_exception('no cats') }}")
