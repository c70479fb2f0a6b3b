"""The engine's state machine with a session store beside it, and restarts between its rules."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from engine.test_state_machine import EngineMachine
from sterna.sessions.keeper import SessionKeeper
from sterna.sessions.store import SessionStore


class RestartMachine(EngineMachine):
    """Everything that `EngineMachine` does; what a restart interrupts is given up."""

    @initialize(blocks=st.integers(12, 40), slots=st.integers(2, 9), quota=st.sampled_from([3_000, 20_000, 10**9]))
    def start(self, blocks, slots, quota):
        self.options = {"blocks": blocks, "slots": slots, "seqs": 2, "budget": slots - 1}
        self.quota = quota
        self.directory = Path(tempfile.mkdtemp())
        self.said = []
        self.begin(**self.options)
        self.keep()

    def keep(self):
        store = SessionStore(self.directory, quota_bytes=self.quota, reserve_bytes=0, say=self.said.append)
        self.keeper = SessionKeeper(
            store, self.engine.backend, self.engine.cache, model="fake", say=self.said.append,
            min_tokens=6, segment_tokens=8,
        )  # fmt: skip
        self.engine.keeper = self.keeper

    @rule()
    def restart(self):
        self.keeper.close()
        requests, outputs, stopped = self.requests, self.outputs, self.stopped
        offset = self.engine._next_id
        stopped |= {request for request in requests if self.engine.is_active(request)}
        self.begin(**self.options)
        self.requests, self.outputs, self.stopped = requests, outputs, stopped
        self.engine._next_id = offset
        self.keep()

    def teardown(self):
        if hasattr(self, "keeper"):
            super().teardown()
            self.keeper.close()
            assert self.keeper.store.total_bytes() <= self.quota
            assert all("too small for one session" in line for line in self.said)
            shutil.rmtree(self.directory)


RestartMachine.TestCase.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate)
)
TestRestartMachine = RestartMachine.TestCase
