"""``python -m sterna.train.sternula.build_data --out DIR``: tokenizer and shards of training episodes.

The episode number decides its content, whatever the number of workers; existing shards are kept, so that an
interrupted run continues and a larger ``--episodes`` adds shards.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import sys
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from sterna.train.sternula.episodes import make_episode
from sterna.train.sternula.pack import encode_episode, write_shard
from sterna.train.sternula.tokenizer import build_tokenizer, write_tokenizer

SHARD_EPISODES = 2000
TOKENIZER_EPISODES = 1200
VALIDATION_EPISODES = 400
SEED_STRIDE = 100_000_000
GENERAL_TEXT = (
    "The quick brown fox jumps over the lazy dog. It was the best of times; we can't say that it isn't. I'll go, you're"
    " here, they've been there, I'm sure he'd know.\n"
    "try:\n    with open(path, encoding='utf-8') as file:\n        return json.load(file)\nexcept (OSError, ValueError)"
    " as error:\n    raise RuntimeError(f'{path}: {error}') from error\nfinally:\n    print('done')\n"
    "@dataclass(frozen=True)\nclass Point:\n    x: float = 0.0\n    y: float = 0.0\n\n    @property\n    def norm(self)"
    " -> float:\n        return math.sqrt(self.x ** 2 + self.y ** 2)\nasync def main() -> None:\n    await run()\n"
    "lambda key: key[1]; yield from items; global state; nonlocal count; assert value is not None; del table[key]\n"
)
COMMON_WORDS = [
    "and",
    "as",
    "assert",
    "async",
    "await",
    "break",
    "class",
    "continue",
    "def",
    "del",
    "elif",
    "else",
    "except",
    "finally",
    "for",
    "from",
    "global",
    "if",
    "import",
    "in",
    "is",
    "lambda",
    "nonlocal",
    "not",
    "or",
    "pass",
    "raise",
    "return",
    "try",
    "while",
    "with",
    "yield",
    "None",
    "True",
    "False",
    "self",
    "cls",
    "args",
    "kwargs",
    "abs",
    "all",
    "any",
    "bool",
    "bytes",
    "callable",
    "chr",
    "dict",
    "enumerate",
    "filter",
    "float",
    "format",
    "frozenset",
    "getattr",
    "hasattr",
    "hash",
    "hex",
    "id",
    "input",
    "int",
    "isinstance",
    "issubclass",
    "iter",
    "len",
    "list",
    "map",
    "max",
    "min",
    "next",
    "object",
    "open",
    "ord",
    "pow",
    "print",
    "property",
    "range",
    "repr",
    "reversed",
    "round",
    "set",
    "setattr",
    "slice",
    "sorted",
    "staticmethod",
    "str",
    "sum",
    "super",
    "tuple",
    "type",
    "zip",
    "append",
    "extend",
    "insert",
    "remove",
    "pop",
    "clear",
    "index",
    "count",
    "sort",
    "reverse",
    "copy",
    "get",
    "keys",
    "values",
    "items",
    "update",
    "setdefault",
    "join",
    "split",
    "rsplit",
    "splitlines",
    "strip",
    "lstrip",
    "rstrip",
    "replace",
    "find",
    "rfind",
    "startswith",
    "endswith",
    "lower",
    "upper",
    "title",
    "capitalize",
    "isdigit",
    "isalpha",
    "isalnum",
    "isspace",
    "isupper",
    "islower",
    "encode",
    "decode",
    "ValueError",
    "TypeError",
    "KeyError",
    "IndexError",
    "AttributeError",
    "ZeroDivisionError",
    "RuntimeError",
    "StopIteration",
    "Exception",
    "start",
    "stop",
    "step",
    "end",
    "length",
    "size",
    "width",
    "height",
    "name",
    "value",
    "key",
    "text",
    "line",
    "lines",
    "data",
    "result",
    "total",
    "number",
    "index",
    "char",
    "prefix",
    "suffix",
    "left",
    "right",
    "first",
    "last",
    "current",
    "previous",
    "path",
    "file",
    "parts",
    "sep",
    "default",
    "message",
    "error",
    "func",
    "other",
    "node",
    "root",
    "parent",
    "child",
    "level",
    "depth",
    "weight",
    "price",
    "amount",
    "rate",
    "date",
    "day",
    "month",
    "year",
    "hour",
    "minute",
    "second",
    "email",
    "user",
    "password",
    "order",
    "account",
    "balance",
    "stock",
    "score",
    "player",
    "board",
    "cell",
    "grid",
    "row",
    "column",
    "point",
    "distance",
    "angle",
    "speed",
    "time",
    "level",
    "state",
    "assertEqual",
    "assertTrue",
    "assertFalse",
    "assertRaises",
    "assertIn",
    "assertIsNone",
    "assertAlmostEqual",
    "unittest",
    "TestCase",
    "setUp",
]


@lru_cache(maxsize=1)
def _tokenizer(path: str) -> Tokenizer:
    return Tokenizer.from_file(path)


def _encode(task: tuple[int, bool, str]) -> tuple[Any, Any]:
    seed, easy, path = task
    return encode_episode(_tokenizer(path), make_episode(seed, easy=easy))


def _corpus(seed: int, count: int) -> Iterator[str]:
    for number in range(count):
        yield make_episode(seed * SEED_STRIDE + SEED_STRIDE // 2 + number).text
    yield GENERAL_TEXT * 20
    yield "\n".join(f"{word} {word} .{word} _{word} ({word}" for word in COMMON_WORDS for _ in range(40))


def _plan(episodes: int, seed: int) -> Iterator[tuple[str, int, int, bool]]:
    """Shards as name, first episode, number of episodes, easy; validation comes second."""
    base = seed * SEED_STRIDE
    yield "shard-00000", base, min(SHARD_EPISODES, episodes), True
    yield "valid-00000", base + SEED_STRIDE // 4, VALIDATION_EPISODES, False
    for number in range(1, -(-episodes // SHARD_EPISODES)):
        first = number * SHARD_EPISODES
        yield f"shard-{number:05d}", base + first, min(SHARD_EPISODES, episodes - first), False


def build(out: Path, *, episodes: int, seed: int, workers: int) -> None:
    """Write the tokenizer (unless it is there) and all missing shards to ``out``; progress goes to standard error."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "tokenizer.json"
    if not path.exists():
        print("training the tokenizer", file=sys.stderr)
        write_tokenizer(out, build_tokenizer(_corpus(seed, TOKENIZER_EPISODES)))
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(multiprocessing.get_context("spawn").Pool(workers)) if workers > 1 else None
        started, done, tokens = time.monotonic(), 0, 0
        for name, first, count, easy in _plan(episodes, seed):
            if (out / name).exists():
                continue
            tasks = [(first + number, easy, str(path)) for number in range(count)]
            results = pool.imap(_encode, tasks, chunksize=25) if pool else map(_encode, tasks)
            tokens += write_shard(out, name, list(results))
            done += count
            rate = done / (time.monotonic() - started)
            print(f"{name}: {done} episodes, {tokens} tokens, {rate:.0f} episodes/s", file=sys.stderr)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m sterna.train.sternula.build_data", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the tokenizer and the shards")
    parser.add_argument("--episodes", type=int, default=20_000, help="training episodes (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="decides all content (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: %(default)s)")
    options = parser.parse_args()
    build(options.out, episodes=options.episodes, seed=options.seed, workers=options.workers)


if __name__ == "__main__":
    main()
