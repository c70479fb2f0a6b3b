"""A ``tokenizer.json`` from a tiktoken rank file, for checkpoints and tests that have only the ranks.

The merges are derived: a token's bytes are merged greedily with the ranks below its own, and if two parts remain,
these are its merge. A token that greedy merging cannot reach has no merge, and no text encodes to it; the tiktoken
library differs there, because it takes whole pieces from the vocabulary.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path

from sterna.chat.byte_level import as_characters, tokenizer_json
from sterna.errors import TokenizerError


def read_ranks(path: Path) -> dict[bytes, int]:
    """Token bytes to rank, which is also the id, from lines ``BASE64 RANK``.

    Raises:
        TokenizerError: a damaged line, a repeated token, or ranks that are not 0, 1, 2, … in order.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines()):
        try:
            encoded, rank = line.split()
            token = base64.b64decode(encoded, validate=True)
            is_next = int(rank) == number
        except ValueError as error:
            raise TokenizerError(f"line {number + 1} of {path} is {line[:80]!r}, expected `BASE64 RANK`") from error
        if not is_next or token in ranks:
            raise TokenizerError(
                f"line {number + 1} of {path} has rank {int(rank)}, expected a new token of rank {number}"
            )
        ranks[token] = number
    return ranks


def derive_merges(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The merges that a byte-level BPE of these ranks needs, lowest resulting id first."""
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) > 1:
            parts = _merge_below(token, rank, ranks)
            if len(parts) == 2:
                merges.append((parts[0], parts[1]))
    return merges


def _merge_below(token: bytes, limit: int, ranks: Mapping[bytes, int]) -> list[bytes]:
    """Greedy BPE of ``token`` with the ranks below ``limit``: lowest rank first, leftmost first."""
    parts = [token[i : i + 1] for i in range(len(token))]
    found = [ranks.get(token[i : i + 2], limit) for i in range(len(token) - 1)]
    while found:
        best = min(found)
        if best >= limit:
            break
        i = found.index(best)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
        del found[i]
        if i < len(found):
            found[i] = ranks.get(parts[i] + parts[i + 1], limit)
        if i > 0:
            found[i - 1] = ranks.get(parts[i - 1] + parts[i], limit)
    return parts


def vocab_json(ranks: Mapping[bytes, int]) -> str:
    """The vocabulary as ``vocab.json`` prints it."""
    return json.dumps({as_characters(token): rank for token, rank in ranks.items()}, ensure_ascii=False, indent=4)


def build_tokenizer_json(path: Path) -> str:
    """Text of the ``tokenizer.json`` of a rank file, control tokens included. Takes some seconds for 250,000 ranks.

    Raises:
        TokenizerError: as ``read_ranks``.
    """
    ranks = read_ranks(path)
    return tokenizer_json(ranks, derive_merges(ranks))
