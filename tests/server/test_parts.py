"""Admission and the store of turns, without a server."""

from __future__ import annotations

import asyncio

import pytest

from sterna.chat.messages import Message, ToolCall
from sterna.server.errors import BusyError
from sterna.server.limits import Limits
from sterna.server.service import Admission
from sterna.server.turns import TurnStore

CALL = ToolCall("edit", {"path": "a", "line": 1}, "c1")
TURN = Message("assistant", "text", "why", (CALL,), None, (1, 2, 3))


def test_turns_go_round_the_keys():
    async def scenario():
        admission, order = Admission(Limits(max_active=1, max_waiting=4)), []

        async def job(key, name):
            await admission.acquire(key)
            order.append(name)

        await admission.acquire("a")
        tasks = []
        for key, name in (("a", "a1"), ("a", "a2"), ("a", "a3"), ("b", "b1")):
            tasks.append(asyncio.create_task(job(key, name)))
            await asyncio.sleep(0)
        with pytest.raises(BusyError):
            admission.check(1)
        tasks[1].cancel()
        await asyncio.sleep(0)
        for _ in range(3):
            admission.release()
            await asyncio.sleep(0)
        admission.release()
        assert (admission.active, admission.waiting) == (0, 0)
        return order

    assert asyncio.run(scenario()) == ["a1", "b1", "a3"]


@pytest.mark.parametrize(
    ("content", "reasoning", "arguments", "is_same"),
    [
        ("text", "why", {"line": 1, "path": "a"}, True),
        (" text\n", None, {"path": "a", "line": 1}, True),
        ("text", " why ", {"replace_all": False, "path": "a", "line": 1}, True),
        ("text", "why", {"force": True, "path": "a", "line": 1}, False),
        ("text", "why", {"path": "a"}, False),
        ("text", "why not", {"path": "a", "line": 1}, False),
        ("other", "why", {"path": "a", "line": 1}, False),
    ],
)
def test_a_turn_is_restored_only_when_it_says_the_same(content, reasoning, arguments, is_same):
    store = TurnStore()
    store.remember(TURN)
    sent = Message("assistant", content, reasoning, (ToolCall("edit", arguments, "c1"),))
    restored = store.restore(sent)
    assert (restored.token_ids == (1, 2, 3)) == is_same
    if not is_same:
        assert restored is sent


def test_the_store_forgets_the_oldest():
    store = TurnStore(max_turns=1)
    for index in range(9):
        store.remember(Message("assistant", f"text {index}", None, (), None, (index,)))
    assert store.restore(Message("assistant", "text 0")).token_ids is None
    assert store.restore(Message("assistant", "text 8")).token_ids == (8,)
