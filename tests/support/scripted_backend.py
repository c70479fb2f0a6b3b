"""A backend without weights that says what a script says, token by token, through the real engine and parser."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np

from sterna.backends.base import Batch, MemoryPlan, SampledToken, SampleRow
from sterna.config import EngineConfig, ModelConfig
from sterna.llm import LLM
from support.chat import chat_format, tiny_tokenizer
from support.fake_backend import text_config

Script = Callable[[str], str]


class WholePass:
    """A long pass that is computed in one go."""

    def __init__(self, backend: ScriptedBackend, batch: Batch) -> None:
        self._backend, self._batch = backend, batch

    def advance(self, layers: int | None = None) -> bool:
        """All of it."""
        self._found = self._backend.forward(self._batch)
        return True

    def logits(self) -> list[int]:
        """What was found."""
        return self._found


class ScriptedBackend:
    """``script`` gets the text of a prompt and returns the text of the answer, in the model's own syntax.

    Caches hold token ids, so that what a sequence continues is known and wrong reuse would show in the text. ``gate``
    stops every pass while it is cleared.
    """

    name = "scripted"

    def __init__(self, script: Script, *, context: int) -> None:
        self.tokenizer = tiny_tokenizer()
        self.config = ModelConfig(
            text=text_config(vocab_size=self.tokenizer.vocab_size, max_position_embeddings=context),
            vision=None,
            eos_token_ids=self.tokenizer.eos_token_ids,
        )
        self.script = script
        self.gate = threading.Event()
        self.gate.set()
        self.passes = 0
        self._answers: dict[bytes, list[int]] = {}
        self._start = self.tokenizer.control_tokens["<|im_start|>"]

    def plan_memory(self, engine_config: EngineConfig) -> MemoryPlan:
        """Room for a few conversations."""
        per_sequence = -(-self.config.text.max_position_embeddings // engine_config.block_size)
        return MemoryPlan(0, 4 * per_sequence + 64, engine_config.block_size, 1, 40, 1, 0)

    def allocate(self, plan: MemoryPlan) -> None:
        """Caches that hold token ids."""
        self.block_size = plan.block_size
        self.kv = np.full(plan.num_blocks * plan.block_size, -1, np.int32)

    def copy_state(self, source: int, target: int) -> None:
        """Nothing: the tokens in the blocks are all the state there is."""

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy the tokens of blocks."""
        blocks = self.kv.reshape(-1, self.block_size)
        for source, target in pairs:
            blocks[target] = blocks[source]

    def forward(self, batch: Batch) -> list[int]:
        """The next token of every sequence that is complete."""
        assert self.gate.wait(20), "nobody opened the gate"
        self.passes += 1
        self.kv[batch.slot_mapping] = batch.token_ids
        rows = set(batch.logits_indices.tolist())
        found = []
        for b, end in enumerate(batch.cu_seqlens[1:].tolist()):
            if end - 1 in rows:
                length = int(batch.context_lens[b]) + end - int(batch.cu_seqlens[b])
                found.append(self._next(self._tokens(batch.block_tables[b], length)))
        return found

    def start(self, batch: Batch) -> WholePass:
        """A pass of one slice."""
        return WholePass(self, batch)

    def _tokens(self, table: np.ndarray, length: int) -> np.ndarray:
        blocks = table[: -(-length // self.block_size)]
        slots = (blocks[:, None] * self.block_size + np.arange(self.block_size)).reshape(-1)[:length]
        tokens = self.kv[slots]
        assert (tokens >= 0).all(), "a block that was never written"
        return tokens

    def _next(self, tokens: np.ndarray) -> int:
        starts = np.flatnonzero(tokens == self._start)
        # a plain continuation has no turns; its prompt is remembered when it is first seen
        for length in range(len(tokens), int(starts[-1]) if len(starts) else 0, -1):
            answer = self._answers.get(tokens[:length].tobytes())
            if answer is not None and answer[: len(tokens) - length] == tokens[length:].tolist():
                return answer[len(tokens) - length]
        text = self.script(self.tokenizer.decode(tokens.tolist()))
        ids = self._encode(text)
        self._answers[tokens.tobytes()] = [*ids, self.tokenizer.eos_token_ids[0]]
        return self._answers[tokens.tobytes()][0]

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for piece, token_id in self.tokenizer.split_control(text):
            ids += self.tokenizer.encode(piece) if token_id is None else [token_id]
        return ids

    def sample(self, logits: list[int], rows: Sequence[SampleRow]) -> list[SampledToken]:
        """What the script says, whatever the sampling."""
        assert len(logits) == len(rows)
        return [SampledToken(token_id) for token_id in logits]

    def close(self) -> None:
        """Nothing to free."""


def scripted_llm(script: Script, *, context: int = 16_384, max_num_seqs: int = 16) -> LLM:
    """A service whose model follows a script."""
    config = EngineConfig(max_model_len=context, max_num_seqs=max_num_seqs)
    return LLM(ScriptedBackend(script, context=context), chat_format(), config, name="scripted")
