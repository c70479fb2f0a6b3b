"""Small parts of sessions: common beginnings, which state serves a prompt, what a manifest keeps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sterna.sessions.session import SegmentRef, Session, StateRef, as_tokens, common_tokens
from sterna.sessions.store import empty_session


@given(st.lists(st.integers(-3, 3), max_size=400), st.lists(st.integers(-3, 3), max_size=20), st.integers(0, 400))
def test_common_beginning(tokens, other, at):
    a, b = as_tokens(tokens), as_tokens([*tokens[:at], *other])
    expected = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    assert common_tokens(a, b) == expected


def session() -> Session:
    return replace(
        empty_session("key", fingerprint="f", model="m", tokens=range(40)),
        segments=(SegmentRef("a", 0, 32, 100), SegmentRef("b", 32, 40, 50)),
        states=(StateRef("x", 10, 3, 7), StateRef("y", 40, 2, 7), StateRef("z", 50, 2, 7)),
    )


def test_the_best_state_lies_within_the_limit_and_the_segments():
    assert session().best_state(39).position == 10
    assert session().best_state(99).position == 40
    assert session().best_state(9) is None
    assert replace(session(), segments=()).best_state(99) is None


def test_a_manifest_keeps_everything():
    before = session()
    after = Session.from_manifest(before.header() | {"kind": "session"}, before.tokens.view(np.uint8))
    assert after.header() == before.header()
    assert np.array_equal(after.tokens, before.tokens)
    assert after.size == 100 + 50 + 3 * 7 + 40 * 8
