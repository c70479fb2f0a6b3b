"""Commands that destroy work which cannot be had back: they need a yes, even inside the sandbox.

The text is taken apart as a shell would, before anything runs. What cannot be taken apart, or hides the command's
name behind an expansion, counts as dangerous when it mentions a destructive command at all.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from itertools import pairwise

_SEPARATORS = frozenset({";", "&&", "||", "|", "|&", "&", "(", ")", "{", "}", "\n", "!"})
_KEYWORDS = frozenset({"if", "then", "else", "elif", "fi", "do", "done", "while", "until", "for", "case", "esac", "in"})
_WRAPPERS = {"sudo": 0, "doas": 0, "env": 0, "nohup": 0, "time": 0, "command": 0, "builtin": 0, "exec": 0, "xargs": 0,
             "nice": 0, "setsid": 0, "stdbuf": 0, "timeout": 1}  # fmt: skip
_SHELLS = frozenset({"sh", "bash", "dash", "zsh", "ksh", "eval"})
_HINTS = re.compile(r"\b(rm|shred|mkfs\S*|dd|push|clean|reset|-delete)\b")
_SUBSTITUTION = re.compile(r"[$<>]\(([^()]*)\)|`([^`]*)`")
_MAX_DEPTH = 4


def danger(command: str, *, depth: int = 0) -> str | None:
    """Why ``command`` needs a yes, or ``None``."""
    if depth > _MAX_DEPTH:
        return "commands nested too deeply to be read"
    for inner in _substitutions(command):
        if reason := danger(inner, depth=depth + 1):
            return reason
    try:
        # what a substitution gives is not known: a name of a command that is one counts as an expansion
        for words in _simple_commands(_SUBSTITUTION.sub("$_", command)):
            if reason := _judge(words, depth):
                return reason
    except ValueError:
        if _HINTS.search(command):
            return "a destructive command in text that cannot be taken apart"
    return None


def _substitutions(command: str) -> list[str]:
    """What stands in ``$( )``, backticks and ``<( )``: the innermost ones."""
    return [match[1] or match[2] or "" for match in _SUBSTITUTION.finditer(command)]


def _simple_commands(command: str) -> Iterator[list[str]]:
    lexer = shlex.shlex(command.replace("\\\n", " ").replace("\n", " ; "), posix=True, punctuation_chars="();<>|&")
    lexer.whitespace_split = True
    lexer.commenters = ""
    words: list[str] = []
    for token in lexer:
        if token in _SEPARATORS or set(token) <= set("();|&"):
            if words:
                yield words
            words = []
        else:
            words.append(token)
    if words:
        yield words


def _judge(words: list[str], depth: int) -> str | None:
    words = _bare(words)
    if not words:
        return None
    name, rest = words[0].rsplit("/", 1)[-1], words[1:]
    if "$" in words[0] or "`" in words[0]:
        return "the name of the command is an expansion" if _HINTS.search(" ".join(words)) or _recursive(rest) else None
    if name in _SHELLS:
        inner = " ".join(rest) if name == "eval" else _after(rest, "-c")
        return danger(inner, depth=depth + 1) if inner else None
    if name == "rm" and _recursive(rest):
        return "deletes directories with everything in them"
    if name in ("shred", "mkfs") or name.startswith("mkfs."):
        return "destroys data"
    if name == "dd" and any(word.startswith("of=") and word != "of=/dev/null" for word in rest):
        return "overwrites a file or device"
    if name == "find":
        return _judge_find(rest, depth)
    return _judge_git(rest) if name == "git" else None


def _bare(words: list[str]) -> list[str]:
    """Without shell keywords, assignments and wrappers such as ``sudo`` in front."""
    while words:
        head = words[0].rsplit("/", 1)[-1]
        if head in _KEYWORDS or head in ("{", "}", "!") or re.fullmatch(r"\w+\+?=.*", words[0], flags=re.DOTALL):
            words = words[1:]
        elif head in _WRAPPERS:
            operands = _WRAPPERS[head]
            words = words[1:]
            while words and (words[0].startswith("-") or re.fullmatch(r"[\d.]+[smhd]?", words[0])):
                operands -= not words[0].startswith("-")
                words = words[1:]
        else:
            return words
    return words


def _recursive(options: list[str]) -> bool:
    return any(o == "--recursive" or re.fullmatch(r"-[a-zA-Z]*[rR][a-zA-Z]*", o) is not None for o in options)


def _after(words: list[str], option: str) -> str:
    """The word after ``option``; options may be joined, as in ``bash -lc``."""
    for word, following in pairwise(words):
        if re.fullmatch(rf"-[a-zA-Z]*{option[1]}", word):
            return following
    return ""


def _judge_find(words: list[str], depth: int) -> str | None:
    if "-delete" in words:
        return "deletes every file that it finds"
    for index, word in enumerate(words):
        if word in ("-exec", "-execdir", "-ok", "-okdir"):
            inner = _bare(words[index + 1 :])
            if inner and inner[0].rsplit("/", 1)[-1] == "rm":
                return "deletes every file that it finds"
            return _judge(inner, depth)
    return None


def _judge_git(words: list[str]) -> str | None:
    while words and words[0].startswith("-"):
        words = words[2:] if words[0] in ("-C", "-c", "--git-dir", "--work-tree") else words[1:]
    if not words:
        return None
    verb, rest = words[0], words[1:]
    short = "".join(word[1:] for word in rest if re.fullmatch(r"-[a-zA-Z]+", word))
    if verb == "push":
        forced = any(w.startswith(("--force", "--mirror", "--delete", "--prune", "+", ":")) for w in rest)
        return "rewrites or deletes what others can see" if forced or "f" in short or "d" in short else None
    if verb == "clean" and ("f" in short or "--force" in rest):
        return "deletes untracked files"
    if verb == "reset" and "--hard" in rest:
        return "throws uncommitted work away"
    if verb in ("checkout", "restore", "switch") and ("f" in short or "--force" in rest or "--discard-changes" in rest):
        return "throws uncommitted work away"
    if verb in ("checkout", "restore") and any(word in (".", ":/", "*") for word in rest):
        return "throws uncommitted work away"
    if verb == "branch" and ("D" in short or ("--delete" in rest and "--force" in rest)):
        return "deletes a branch that may not be merged"
    if verb == "stash" and rest[:1] in (["drop"], ["clear"]):
        return "deletes stashed work"
    return None
