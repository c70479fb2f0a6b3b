"""From scheduled pieces to the arrays of a `Batch` and the rows of the sampler."""

from __future__ import annotations

import numpy as np

from sterna.backends.base import Batch, SampleRow
from sterna.engine.scheduler import Piece
from sterna.engine.sequence import Sequence


def build_batch(pieces: list[Piece], *, block_size: int) -> Batch:
    """One pass over the pieces, in order; logits are wanted where a piece completes its sequence."""
    lengths = np.array([piece.num_tokens for piece in pieces], np.int32)
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    context_lens = np.array([piece.sequence.num_computed_tokens for piece in pieces], np.int32)
    token_ids = np.concatenate([_token_ids(piece) for piece in pieces])
    positions = np.concatenate([np.arange(n, dtype=np.int32) + c for n, c in zip(lengths, context_lens, strict=True)])
    tables = [np.array(piece.sequence.block_table, np.int32) for piece in pieces]
    block_tables = np.full((len(pieces), max(len(table) for table in tables)), -1, np.int32)
    for row, table in zip(block_tables, tables, strict=True):
        row[: len(table)] = table
    rows = np.repeat(np.arange(len(pieces)), lengths)
    slot_mapping = block_tables[rows, positions // block_size] * block_size + positions % block_size
    return Batch(
        token_ids=token_ids,
        positions=np.ascontiguousarray(np.broadcast_to(positions, (3, len(positions)))),
        cu_seqlens=cu_seqlens,
        context_lens=context_lens,
        block_tables=block_tables,
        slot_mapping=slot_mapping.astype(np.int32),
        state_slots=np.array([piece.sequence.state_slot for piece in pieces], np.int32),
        snapshot_at=_snapshot_rows(pieces, cu_seqlens),
        logits_indices=np.array(
            [end - 1 for piece, end in zip(pieces, cu_seqlens[1:], strict=True) if piece.is_last], np.int32
        ),
    )


def _snapshot_rows(pieces: list[Piece], cu_seqlens: np.ndarray) -> np.ndarray:
    rows = [
        (start + position - 1 - piece.sequence.num_computed_tokens, slot)
        for piece, start in zip(pieces, cu_seqlens.tolist(), strict=False)
        for position, slot, _ in piece.snapshots
    ]
    return np.array(rows, np.int32).reshape(-1, 2)


def _token_ids(piece: Piece) -> np.ndarray:
    start = piece.sequence.num_computed_tokens
    return np.array(piece.sequence.token_ids[start : start + piece.num_tokens], np.int32)


def sample_row(sequence: Sequence) -> SampleRow:
    """How the next token of a fully computed sequence is chosen."""
    params = sequence.params
    has_penalty = params.presence_penalty or params.frequency_penalty or params.repetition_penalty != 1.0
    prompt_length = sequence.num_prompt_tokens
    return SampleRow(
        params=params,
        seed=sequence.seed,
        position=len(sequence),
        prompt_ids=sequence.token_ids[:prompt_length] if has_penalty else (),
        output_ids=sequence.token_ids[prompt_length:] if has_penalty else (),
    )
