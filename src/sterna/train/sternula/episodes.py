"""Training episodes: what the agent would have done in a generated project, with tries that fail and are undone."""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random

from sterna.agent.editor import similar_line
from sterna.chat.messages import Message, ToolCall
from sterna.evals.small_bugs.generate import generate_from_families
from sterna.evals.small_bugs.inprocess import TestRun, run_inprocess
from sterna.evals.small_bugs.mutate import Mutation, find_mutations
from sterna.evals.small_bugs.naming import MODULES, SYNONYMS, fresh_name
from sterna.evals.small_bugs.project import Project
from sterna.train.sternula.observe import FIRST, PYTHONS, TEST, Shell, folder_name, read_command, read_output
from sterna.train.sternula.render import agent_tools, render, system_prompt
from sterna.train.sternula.words import CHAT, DEFAULT_TASK, QUESTIONS, REASONS, TASKS

THINKING_SHARE = 0.65
ATTEMPTS = (0.55, 0.27, 0.12, 0.06)
"""Shares of episodes with 0, 1, 2 and 3 wrong tries before the right one."""
REAL_CODE_SHARE = 0.04
STUMBLES = (0.8, 0.12, 0.05, 0.03)
"""Chances, before each try, of 0, 1, 2 and 3 calls that the editor refuses; only what comes after them is learnt."""
OTHER_SHARES = {"passing": 0.015, "answer": 0.02, "chat": 0.01}


@dataclass(frozen=True, slots=True)
class Episode:
    """Rendered text and, as character ranges, what the model learns to say and the tries it must not learn."""

    text: str
    spoken: tuple[tuple[int, int], ...]
    silent: tuple[tuple[int, int], ...]
    kind: str


@dataclass(frozen=True, slots=True)
class Edit:
    """One replacement of a line; ``right`` is false for a try that the tests refuse. Lines count from 1."""

    path: str
    line: int
    new: str
    kind: str
    right: bool


@dataclass
class _Turn:
    """An assistant turn under construction; ``silent`` counts the leading pieces (thought or text, calls) not learnt."""

    message: Message
    learnt: list[bool]


def _bash(command: str) -> ToolCall:
    return ToolCall("bash", {"command": command})


def unique_span(source: str, line: int) -> tuple[int, int]:
    """First and last line (from 1) of the smallest block around ``line`` that occurs exactly once in ``source``."""
    lines = source.split("\n")
    for before, after in ((0, 0), (1, 0), (0, 1), (1, 1), (2, 1), (3, 2), (5, 4)):
        first, last = max(line - before, 1), min(line + after, len(lines))
        block = "\n".join(lines[first - 1 : last])
        if block.strip() and source.count(block) == 1:
            return first, last
    return 1, len(lines)


def edit_call(files: dict[str, str], path: str, line: int, new: str) -> tuple[ToolCall, dict[str, str], str]:
    """The call that sets ``line`` to ``new``, the files after it and what the tool answers."""
    source = files[path]
    lines = source.split("\n")
    first, last = unique_span(source, line)
    old_block = lines[first - 1 : last]
    new_block = [new if first + i == line else text for i, text in enumerate(old_block)]
    arguments = {
        "command": "str_replace", "path": path, "old_str": "\n".join(old_block), "new_str": "\n".join(new_block)
    }  # fmt: skip
    lines[line - 1] = new
    return (
        ToolCall("str_replace_editor", arguments),
        {**files, path: "\n".join(lines)},
        f"{path} edited at line {first}",
    )


def failure_text(output: str) -> str:
    """One sentence on the failure that ``output`` of the tests shows."""
    errors = re.findall(r"^(\w+(?:Error|Exception|Exit|Iteration)): ?(.*)$", output, flags=re.MULTILINE)
    calls = re.findall(r"^ {4}(?:self\.assert(\w+)\((.*)\)|(.+))$", output, flags=re.MULTILINE)
    asserted = [(kind, inner) for kind, inner, _ in calls if kind]
    if not errors:
        return "A test fails."
    name, message = errors[-1]
    if name != "AssertionError":
        return f"{name}: {message}." if message else f"{name}."
    message = re.sub(r"^\w+ differ: ", "", message)
    if not asserted:
        return f"{message}."
    kind, inner = asserted[-1]
    if kind in ("True", "False"):
        return f"{inner} gives {kind == 'False'}, not {kind}."
    if kind == "IsNone":
        return f"{inner} gives {message.removesuffix(' is not None')}, not None."
    got, _, wanted = message.partition(" != ")
    call = inner[: -len(wanted) - 2] if inner.replace('"', "'").endswith(", " + wanted) else inner.rsplit(", ", 1)[0]
    return f"{call} gives {got}, not {wanted}."


def change_text(old: str, new: str) -> str:
    """What becomes of ``old`` in ``new``, as one sentence about the shortest piece that says it."""
    before, after = (re.findall(r"\w+|\s+|[^\w\s]+", line.strip()) for line in (old, new))
    head = 0
    while head < min(len(before), len(after)) and before[head] == after[head]:
        head += 1
    tail = 0
    while tail < min(len(before), len(after)) - head and before[-1 - tail] == after[-1 - tail]:
        tail += 1
    # A piece that vanishes or appears is told with its neighbour, so that both sides say something.
    while head and not all("".join(line[head : len(line) - tail]).strip() for line in (before, after)):
        head -= 1
    pieces = ("".join(line[head : len(line) - tail]).strip() for line in (before, after))
    return "`{}` should be `{}`.".format(*pieces)


def suspect_text(place: str, old: str, new: str, kind: str) -> str:
    """Which line is suspected, why, and what it should be."""
    return f"In {place}: `{old.strip()}`: {REASONS[kind]} {change_text(old, new)}"


class _Script:
    """Builds the messages of one episode and remembers which pieces of each assistant turn are learnt."""

    def __init__(self, project: Project, rng: Random, *, thinking: bool, task: str = "") -> None:
        self.project, self.rng, self.thinking = project, rng, thinking
        self.files = dict(project.files)
        self.shell = Shell(folder_name(rng), rng.choice(PYTHONS))
        task = task or (DEFAULT_TASK if rng.random() < 0.6 else rng.choice(TASKS))
        self.messages = [Message("system", system_prompt()), Message("user", task)]
        self.turns: list[_Turn] = []
        self.stumbled = False

    def say(self, thought: str, calls: list[ToolCall], *, text: str = "", learnt: list[bool] | None = None) -> None:
        """An assistant turn; in instruct mode the thought is not written."""
        message = Message("assistant", text, reasoning=thought if self.thinking else "", tool_calls=tuple(calls))
        self.messages.append(message)
        self.turns.append(_Turn(message, learnt or [True] * (1 + len(calls))))

    def hear(self, *results: str) -> None:
        self.messages += [Message("tool", result) for result in results]

    def run(self) -> TestRun:
        return run_inprocess(self.files)

    def test_output(self, run: TestRun) -> str:
        return self.shell.tests(run, self.rng)

    def start(self) -> str:
        run = self.run()
        output = self.test_output(run)
        self.say("Run the tests.", [_bash(FIRST)])
        self.hear(f"{self.shell.listing(self.files)}\n{output}")
        return output

    def read(self, output: str) -> None:
        sources = sorted(path for path in self.files if not path.startswith("test"))
        self.say(f"{failure_text(output)} Read {' '.join(sources)}.", [_bash(read_command(sources))])
        self.hear(read_output(self.files, sources))

    def attempt(self, edit: Edit, undo: Edit | None) -> None:
        """One try: perhaps put back the line of the last one, change a line, run the tests."""
        calls: list[ToolCall] = []
        results: list[str] = []
        learnt = [edit.right]
        thought = ""
        if self.stumbled:
            thought, self.stumbled = "The edit failed. ", False
        if undo is not None:
            thought += "Still wrong: "
            if (undo.path, undo.line) != (edit.path, edit.line):
                call, self.files, result = edit_call(self.files, undo.path, undo.line, undo.new)
                calls.append(call)
                results.append(result)
                learnt.append(edit.right)
                thought = thought.removesuffix("Still wrong: ") + "Still wrong. Put it back. "
        current = self.files[edit.path].split("\n")[edit.line - 1]
        thought += suspect_text(self.project.function, current, edit.new, edit.kind)
        call, self.files, result = edit_call(self.files, edit.path, edit.line, edit.new)
        run = self.run()
        if run.passed != edit.right:
            raise RuntimeError("a try does not do what it was planned to do")
        output = self.test_output(run)
        self.say(thought, [*calls, call, _bash(TEST)], learnt=[*learnt, edit.right, True])
        self.hear(*results, result, output)

    def stumble(self, edit: Edit) -> None:
        """A call that the editor refuses: nothing changed, a line that is not there, or a wrong file.

        This is what the model does by mistake, most often to a line that is right; none of it is learnt.
        """
        path, line, new = edit.path, edit.line, edit.new
        lines = self.files[path].split("\n")
        if self.rng.random() < 0.7:
            line = self.rng.choice([number for number, text in enumerate(lines, 1) if text.strip()])
        old = lines[line - 1]
        if line != edit.line:
            names = re.findall(r"\w+", old) or ["x"]
            new = old.replace(self.rng.choice(names), self.rng.choice(("0", "1", fresh_name(self.rng))), 1)
        thought = suspect_text(self.project.function, old, new, edit.kind)
        draw = self.rng.random()
        if draw < 0.45:
            new = old
            result = "error: old_str and new_str are the same, the edit would change nothing"
        elif draw < 0.85:
            name = self.rng.choice(re.findall(r"\b[a-z]\w*\b", old) or ["x"])
            old = re.sub(rf"\b{name}\b", self.rng.choice([*SYNONYMS, fresh_name(self.rng)]), old)
            if old in self.files[path]:
                return
            thought = suspect_text(self.project.function, old, new, edit.kind)
            hint = similar_line(self.files[path], old)
            result = f"error: old_str was not found in {path}" + (f"\nhint: {hint}" if hint else "")
        else:
            path = f"{self.rng.choice([name for name in MODULES if f'{name}.py' not in self.files])}.py"
            result = f"error: {path} does not exist"
        arguments = {"command": "str_replace", "path": path, "old_str": old, "new_str": new}
        # The same mistake twice, now and then: what comes after it must be something else.
        for _ in range(1 + (self.rng.random() < 0.35)):
            output = self.test_output(self.run())
            call = ToolCall("str_replace_editor", dict(arguments))
            prefix = "The edit failed. " if self.stumbled else ""
            self.say(prefix + thought, [call, _bash(TEST)], learnt=[False, False, True])
            self.hear(result, output)
            self.stumbled = True

    def finish(self) -> None:
        self.say("OK. Done.", [ToolCall("submit", {})], text=f"Fixed {self.project.path}; the tests pass.")


def _wrong_edits(project: Project, count: int, rng: Random) -> list[Edit]:
    """Tries that look sensible, change the function under suspicion and leave a test failing."""
    source = project.files[project.path]
    lines = source.split("\n")
    candidates = find_mutations(source, function=project.function)
    same = [candidate for candidate in candidates if candidate.line == project.line]
    edits: list[Edit] = []
    for _ in range(6 * count):
        if len(edits) == count or not candidates:
            break
        pool: list[Mutation] = same if same and rng.random() < 0.35 else candidates
        pick = rng.choice(pool)
        text = lines[pick.line - 1]
        new = text[: pick.start] + pick.text + text[pick.end :]
        if new == project.fixed_line or any((edit.line, edit.new) == (pick.line, new) for edit in edits):
            continue
        changed = {**project.files, project.path: pick.apply(source)}
        try:
            run = run_inprocess(changed)
        except SyntaxError:
            continue
        if not run.usable_failure:
            continue
        edits.append(Edit(project.path, pick.line, new, pick.kind, right=False))
    return edits


def _repair(script: _Script, wrong: int) -> None:
    project, rng = script.project, script.rng
    lines = project.files[project.path].split("\n")
    output = script.start()
    script.read(output)
    undo: Edit | None = None
    right = Edit(project.path, project.line, project.fixed_line, project.kind, right=True)
    for edit in [*_wrong_edits(project, wrong, rng), right]:
        for _ in range(rng.choices(range(4), STUMBLES)[0]):
            script.stumble(edit)
        script.attempt(edit, undo)
        undo = Edit(edit.path, edit.line, lines[edit.line - 1], edit.kind, right=False)
    script.finish()


def _answer(script: _Script) -> None:
    """A question about the tests, answered without a change."""
    if script.rng.random() < 0.4:
        script.files = dict(script.project.fixed_files)
    output = script.start()
    failed = re.findall(r"^(?:FAIL|ERROR): (\w+)|, in (test_\w+)", output, flags=re.MULTILINE)
    if failed:
        script.say("A test fails.", [], text=f"No: {failed[0][0] or failed[0][1]} fails. {failure_text(output)}")
    else:
        script.say("OK.", [], text="Yes, all tests pass.")


def _spans(text: str, turns: list[_Turn]) -> tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]:
    """Character ranges of the assistant's turns, ends included: those that carry full loss and those that carry none."""
    spans: list[tuple[int, int]] = []
    silent: list[tuple[int, int]] = []
    position = 0
    for turn in turns:
        head = "<|im_start|>assistant\n<think>\n"
        begin = text.index(head, position) + len(head)
        if not turn.message.reasoning:
            begin = text.index("</think>\n\n", begin - 1) + len("</think>\n\n")
        end = text.index("<|im_end|>", begin) + len("<|im_end|>")
        cuts = [begin, *(match.start() for match in re.finditer("<tool_call>", text[begin:end]))]
        cuts = [begin, *(begin + cut for cut in cuts[1:]), end]
        if len(cuts) != len(turn.learnt) + 1:
            raise RuntimeError("an episode contains a literal <tool_call>")
        for a, b, learnt in zip(cuts, cuts[1:], turn.learnt, strict=False):
            (spans if learnt else silent).append((a, b))
        position = end
    return tuple(spans), tuple(silent)


def _chat(rng: Random) -> Episode:
    question, answer = rng.choice(CHAT)
    thinking = rng.random() < THINKING_SHARE
    reply = Message("assistant", answer, reasoning="A short answer." if thinking else "")
    text = render([Message("user", question), reply], tools=None)
    return Episode(text, *_spans(text, [_Turn(reply, [True])]), kind="chat")


def make_episode(seed: int, *, easy: bool = False) -> Episode:
    """One episode, the same for the same arguments. ``easy``: one function, at most one wrong try."""
    rng = Random(f"episode:{seed}")
    draw = rng.random()
    if draw < OTHER_SHARES["chat"]:
        return _chat(rng)
    thinking = rng.random() < THINKING_SHARE
    real = not easy and rng.random() < REAL_CODE_SHARE
    project = generate_from_families(
        seed, "training-real-code" if real else "training", units=1 if easy or real else None
    )  # fmt: skip
    if draw > 1 - OTHER_SHARES["answer"]:
        script = _Script(project, rng, thinking=thinking, task=rng.choice(QUESTIONS))
        _answer(script)
        text = render(script.messages, tools=agent_tools())
        return Episode(text, *_spans(text, script.turns), kind="answer")
    script = _Script(project, rng, thinking=thinking)
    kind = "repair"
    if draw < OTHER_SHARES["chat"] + OTHER_SHARES["passing"]:
        kind = "passing"
        script.files = dict(project.fixed_files)
        script.start()
        script.say("OK. Nothing to fix.", [ToolCall("submit", {})], text="All tests pass already; nothing to fix.")
    else:
        wrong = rng.choices(range(4), ATTEMPTS)[0]
        _repair(script, min(wrong, 1) if easy else wrong)
    text = render(script.messages, tools=agent_tools())
    return Episode(text, *_spans(text, script.turns), kind=kind)
