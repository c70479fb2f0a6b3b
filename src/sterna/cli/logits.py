"""``sterna logits``: float32 logits of given tokens at every position, for comparison with other engines."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sterna.cli.common import add_recipe_flag
from sterna.config import EngineConfig
from sterna.errors import ContextOverflowError, UsageError

if TYPE_CHECKING:
    import numpy as np

    from sterna.backends.base import Backend

BACKENDS = ("native", "torch", "numpy")
BLOCK_SIZE = 64
DEFAULT_CHUNK = 512


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Declare the command."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "logits",
        help="float32 logits of given tokens",
        description="Compute the logits of every position of a list of token ids and write them as a numpy array "
        "float32 [T, V]. The text may be cut into chunks, which continue from the cache.",
    )
    parser.add_argument("--model", type=Path, required=True, metavar="PATH", help="checkpoint directory or GGUF file")
    add_recipe_flag(parser)
    parser.add_argument("--token-ids", type=Path, required=True, metavar="FILE.json", help="a JSON list of token ids")
    parser.add_argument("--backend", choices=BACKENDS, default="numpy", help="what computes (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.npy", help="where to write the logits")
    parser.add_argument(
        "--chunks",
        type=_chunks,
        metavar="70,37,…",
        help=f"tokens per pass; the rest follows in one more (default: {DEFAULT_CHUNK} each)",
    )
    parser.add_argument("--json", action="store_true", help="last line of standard output: the whole result as JSON")
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    import numpy as np

    from sterna.checkpoint.opening import open_checkpoint

    backend = _make_backend(args.backend)
    checkpoint, config = open_checkpoint(args.model, recipe=args.recipe, quantized=backend.computes_quantized)
    token_ids = read_token_ids(args.token_ids, config.text.vocab_size)
    if len(token_ids) > config.text.max_position_embeddings:
        raise ContextOverflowError(
            f"the text has {len(token_ids):,} tokens, the context is {config.text.max_position_embeddings:,}"
        )
    sizes = chunk_sizes(len(token_ids), args.chunks)
    backend.load(checkpoint, config)
    logits = compute_logits(backend, token_ids, sizes)
    with args.out.open("wb") as file:
        np.save(file, logits)
    backend.close()
    print(f"wrote {args.out}: float32 {list(logits.shape)} by {args.backend}", file=sys.stderr)
    if args.json:
        print(json.dumps({"out": str(args.out), "shape": list(logits.shape), "backend": args.backend, "chunks": sizes}))
    return 0


def read_token_ids(path: Path, vocab_size: int) -> list[int]:
    """A JSON list of at least one token id; raises `UsageError` for anything else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"cannot read {path} as JSON ({error})", hint="give a file that holds a list like [1, 2, 3]"
        ) from error
    if not isinstance(values, list) or not values:
        raise UsageError(f"{path} holds no list of token ids", hint="give a file that holds a list like [1, 2, 3]")
    for position, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < vocab_size:
            raise UsageError(
                f"token {position} of {path} is {str(value)[:50]}, allowed is an integer from 0 to {vocab_size - 1}"
            )
    return values


def chunk_sizes(tokens: int, chunks: list[int] | None) -> list[int]:
    """Sizes of the passes that cover so many tokens; raises `UsageError` where the given chunks hold more."""
    if chunks is None:
        return [min(DEFAULT_CHUNK, tokens - start) for start in range(0, tokens, DEFAULT_CHUNK)]
    rest = tokens - sum(chunks)
    if rest < 0:
        raise UsageError(f"--chunks hold {sum(chunks):,} tokens, allowed is up to the {tokens:,} of the text")
    return [*chunks, rest] if rest else chunks


def compute_logits(backend: Backend, token_ids: list[int], sizes: list[int]) -> np.ndarray:
    """float32 [T, V] of one sequence, computed in passes of the given sizes over a loaded backend."""
    import numpy as np

    from sterna.backends.base import Batch

    blocks = -(-len(token_ids) // BLOCK_SIZE)
    backend.allocate(
        backend.plan_memory(
            EngineConfig(max_model_len=len(token_ids), max_num_seqs=1, block_size=BLOCK_SIZE, num_state_slots=1)
        )
    )
    table, rows, start = np.arange(blocks, dtype=np.int32)[None], [], 0
    for size in sizes:
        index = np.arange(start, start + size, dtype=np.int32)
        batch = Batch(
            token_ids=np.asarray(token_ids[start : start + size], np.int32),
            positions=np.tile(index, (3, 1)),
            cu_seqlens=np.array([0, size], np.int32),
            context_lens=np.array([start], np.int32),
            block_tables=table,
            # Blocks of the only sequence lie in order, so that slot and token index agree.
            slot_mapping=index,
            state_slots=np.zeros(1, np.int32),
            logits_indices=np.arange(size, dtype=np.int32),
        )
        rows.append(backend.forward(batch).to_numpy())
        start += size
    return np.concatenate(rows)


def _make_backend(name: str) -> Backend:
    from sterna.locate import make_backend

    return make_backend(name, float32_cache=True)[0]


def _chunks(text: str) -> list[int]:
    sizes = [int(part) for part in text.split(",")]
    if any(size < 1 for size in sizes):
        raise argparse.ArgumentTypeError(f"a chunk of {min(sizes)} tokens, allowed is 1 or more")
    return sizes
