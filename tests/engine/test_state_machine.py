"""Cache and scheduler as a state machine over the fake backend: after every rule the books balance, at the end the text is right."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from engine.test_engine import make_engine, reference
from sterna.types import SamplingParams

NAMES = st.sampled_from(["", "a", "b"])
# so few different tokens that prompts share beginnings
TREES = st.lists(st.integers(1, 3), min_size=1, max_size=26)
PICK = st.integers(0, 30)


class EngineMachine(RuleBasedStateMachine):
    """Requests come, step, branch, go on, are cancelled or ended; several keys, priorities, few blocks and slots."""

    @initialize(
        blocks=st.integers(8, 40), slots=st.integers(1, 9), seqs=st.integers(1, 4), budget=st.integers(0, 9),
    )  # fmt: skip
    def start(self, blocks, slots, seqs, budget):
        self.begin(blocks, slots, seqs, budget)

    def begin(self, blocks, slots, seqs, budget):
        self.engine = make_engine(
            num_blocks=blocks, num_state_slots=slots, max_num_seqs=min(seqs, slots), snapshot_bytes=budget
        )
        self.budget = budget
        self.requests, self.outputs, self.stopped = {}, defaultdict(list), set()
        self.known = defaultdict(list)

    def submit(self, prompt, seed, namespace, priority, turns):
        if len(prompt) >= self.engine.max_model_len:
            return
        params = SamplingParams(seed=seed, max_tokens=5)
        request = self.engine.add_request(
            prompt, params, turn_starts=sorted(turns), namespace=namespace, priority=priority
        )
        self.requests[request] = (prompt, params, namespace)

    @rule(prompt=TREES, seed=st.integers(1, 5), namespace=NAMES, priority=st.integers(0, 2), turns=st.sets(PICK))
    def add(self, prompt, seed, namespace, priority, turns):
        self.submit(prompt, seed, namespace, priority, turns)

    @rule(which=PICK, cut=st.integers(0, 6), seed=st.integers(1, 5), turns=st.sets(PICK, max_size=3))
    def go_on(self, which, cut, seed, turns):
        if which in self.requests:
            prompt, _, namespace = self.requests[which]
            whole = [*prompt, *self.outputs[which]]
            self.submit([*whole[: len(whole) - cut], 1 + seed % 3], seed, namespace, 0, turns)

    @rule(which=PICK, keep=st.booleans())
    def end(self, which, keep):
        if which in self.requests:
            self.stopped.add(which)
            (self.engine.finish if keep else self.engine.cancel)(which)
            assert not self.engine.is_active(which)

    @rule(count=st.integers(1, 9))
    def steps(self, count):
        for _ in range(count):
            self.step()

    def step(self):
        for event in self.engine.step():
            self.outputs[event.request_id].append(event.token.token_id)
            self.check_usage(event)

    def check_usage(self, event):
        prompt, _, namespace = self.requests[event.request_id]
        usage = event.usage
        assert usage.cached_tokens + usage.computed_tokens == usage.prompt_tokens == len(prompt)
        # what is reused was computed under the same key before
        cached = prompt[: usage.cached_tokens]
        assert not cached or any(
            other != event.request_id and name == namespace and [*p, *self.outputs[other]][: len(cached)] == cached
            for other, (p, _, name) in self.requests.items()
        )

    @invariant()
    def the_books_balance(self):
        if not hasattr(self, "engine"):
            return
        scheduler, cache = self.engine.scheduler, self.engine.cache
        reserved = sum(len(piece.snapshots) for piece in self.engine.long_pieces)
        audit = cache.audit(scheduler.running)
        assert audit.lost_blocks == 0
        assert audit.lost_states == reserved
        assert audit.kept_states <= self.budget
        assert len(scheduler.running) <= scheduler.max_num_seqs

    def teardown(self):
        if not hasattr(self, "engine"):
            return
        for _ in range(4000):
            if not self.engine.has_work:
                break
            self.step()
        assert not self.engine.has_work, "a request starves"
        for request, (prompt, params, _) in self.requests.items():
            expected = reference(prompt, params, limit=self.engine.max_model_len - len(prompt))
            found = self.outputs[request]
            assert found == (expected[: len(found)] if request in self.stopped else expected)
        self.engine.cache.clear()
        audit = self.engine.cache.audit()
        assert (audit.free_blocks, audit.free_states) == (audit.blocks, audit.states)


EngineMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate)
)
TestEngineMachine = EngineMachine.TestCase
