"""Training episodes say what the run time will say: same prompt, same observations, same refusals of the editor."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from random import Random

import numpy as np
import pytest

from sterna.agent.editor import edit_file
from sterna.chat import ChatFormat
from sterna.chat.messages import ChatRequest, Message, Tool
from sterna.errors import AgentError
from sterna.evals.small_bugs.generate import generate_from_families
from sterna.evals.small_bugs.inprocess import run_inprocess
from sterna.evals.small_bugs.project import write_project
from sterna.train.sternula import episodes
from sterna.train.sternula.episodes import make_episode
from sterna.train.sternula.observe import Shell, read_command, read_output
from sterna.train.sternula.pack import encode_episode
from sterna.train.sternula.render import agent_tools, render
from sterna.train.sternula.tokenizer import ADDED_TOKENS

STERNULA = Path(episodes.__file__).parents[2] / "data" / "sternula"


def script(seed: int, *, wrong: int = 2) -> episodes._Script:
    """The messages of a repair with some wrong tries."""
    built = episodes._Script(generate_from_families(seed, "training"), Random(seed), thinking=seed % 2 == 0)
    episodes._repair(built, wrong)
    return built


@pytest.mark.parametrize("seed", range(6))
def test_training_text_is_what_the_run_time_renders(seed: int) -> None:
    messages = script(seed).messages
    tools = tuple(
        Tool(t["function"]["name"], t["function"]["description"], t["function"]["parameters"]) for t in agent_tools()
    )
    request = ChatRequest(tuple(messages), tools, enable_thinking=seed % 2 == 0)
    text = ChatFormat.load(STERNULA).render(request).text
    expected = render(messages, tools=agent_tools())
    assert text.startswith(expected) or expected.startswith(text.removesuffix("<|im_start|>assistant\n<think>\n"))


def test_every_position_of_an_episode_has_its_loss() -> None:
    tokenizer = ChatFormat.load(STERNULA).tokenizer
    from tokenizers import Tokenizer

    raw = Tokenizer.from_file(str(STERNULA / "tokenizer.json"))
    for seed in range(20):
        episode = make_episode(seed)
        token_ids, weights = encode_episode(raw, episode)
        assert len(token_ids) == len(weights)
        spoken = tokenizer.decode([int(i) for i, w in zip(token_ids, weights, strict=True) if w == 1.0])
        assert spoken == "".join(episode.text[a:b] for a, b in episode.spoken)
        assert not np.asarray(weights, np.float64).min() < 0


@pytest.mark.parametrize("seed", range(4))
def test_observed_test_runs_are_those_of_a_real_interpreter(seed: int, tmp_path: Path) -> None:
    if sys.version_info[:2] not in ((3, 11), (3, 12)):
        pytest.skip("the in-process runner prints what the running interpreter prints; the texts compared are of 3.11")
    project = generate_from_families(seed, "training")
    write_project(project, tmp_path)
    done = subprocess.run(
        f"{sys.executable} -B -m unittest -f 2>&1 | tail -n 20",
        shell=True,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    observed = Shell(str(tmp_path), "3.11").tests(run_inprocess(project.files), Random(0))
    timeless = re.compile(r"in \d+\.\d+s")
    assert timeless.sub("in Ns", observed) == timeless.sub("in Ns", done.stdout.strip("\n"))


@pytest.mark.parametrize("names", [["a.py"], ["a.py", "b.py"], ["a.py", "b.py", "c.py"]])
def test_observed_files_are_what_the_command_prints(names: list[str], tmp_path: Path) -> None:
    files = {name: f"def {name[0]}():\n    return 1\n" for name in names}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    done = subprocess.run(read_command(names), shell=True, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert read_output(files, names) == done.stdout.rstrip("\n")


def test_observed_edits_and_refusals_are_the_editors(tmp_path: Path) -> None:
    refused = edited = 0
    for seed in range(150):
        built = script(seed, wrong=1)
        folder = tmp_path / str(seed)
        write_project(built.project, folder)
        for turn, message in enumerate(built.messages):
            results = [m.content for m in built.messages[turn + 1 : turn + 1 + len(message.tool_calls)]]
            for call, result in zip(message.tool_calls, results, strict=False):
                if call.name != "str_replace_editor":
                    continue
                try:
                    found = edit_file(folder, call.arguments)
                    edited += 1
                except AgentError as error:
                    found = f"error: {error.message}" + (f"\nhint: {error.hint}" if error.hint else "")
                    refused += 1
                assert found == result
    assert refused > 5
    assert edited > 200


def test_added_tokens_come_last_in_the_official_order() -> None:
    tokenizer = ChatFormat.load(STERNULA).tokenizer
    first = tokenizer.control_tokens["<|endoftext|>"]
    assert [tokenizer.control_tokens[text] for text in ADDED_TOKENS] == list(range(first, first + 33))


def test_messages_of_a_chat_do_not_need_tools() -> None:
    text = render([Message("user", "Hello"), Message("assistant", "Hi.", reasoning="")], tools=None)
    assert "<tools>" not in text and text.endswith("Hi.<|im_end|>\n")
