"""Commands and manifests with the reference settings, what they cost per device, and what is refused."""

from __future__ import annotations

import json
import shlex

import pytest

from sterna.cli.main import main
from sterna.delegate.engine import LaunchRequest, check_version, plan_launch
from sterna.errors import BackendError, OutOfMemoryError, UsageError
from sterna.fit import find_hardware


def flags(command: tuple[str, ...]) -> dict[str, str]:
    """``--flag value`` pairs; a flag without value maps to an empty text."""
    found: dict[str, str] = {}
    for i, part in enumerate(command):
        if part.startswith("--"):
            following = command[i + 1] if i + 1 < len(command) else ""
            found[part] = "" if following.startswith("--") else following
    return found


def test_the_reference_command_of_vllm() -> None:
    (command,) = plan_launch(LaunchRequest("vllm")).commands
    assert command[:3] == ("vllm", "serve", "Qwen/Qwen3.6-35B-A3B")
    assert flags(command) == {
        "--port": "8000", "--tensor-parallel-size": "8", "--max-model-len": "262144", "--reasoning-parser": "qwen3",
        "--enable-auto-tool-choice": "", "--tool-call-parser": "qwen3_coder",
        "--speculative-config": '{"method":"qwen3_next_mtp","num_speculative_tokens":2}',
    }  # fmt: skip


def test_the_reference_command_of_sglang() -> None:
    (command,) = plan_launch(LaunchRequest("sglang")).commands
    assert command[:4] == ("python", "-m", "sglang.launch_server", "--model-path")
    found = flags(command)
    assert (found["--tp-size"], found["--mem-fraction-static"], found["--context-length"]) == ("8", "0.8", "262144")
    assert (found["--reasoning-parser"], found["--tool-call-parser"]) == ("qwen3", "qwen3_coder")
    assert (found["--speculative-algo"], found["--speculative-num-draft-tokens"]) == ("NEXTN", "4")


@pytest.mark.parametrize(("context", "factor"), [(524_288, 2.0), (524_289, 4.0), (1_010_000, 4.0)])
def test_a_longer_context_brings_yarn(context: int, factor: float) -> None:
    launch = plan_launch(LaunchRequest("vllm", context=context))
    assert launch.environment == {"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"}
    rope = json.loads(flags(launch.commands[0])["--hf-overrides"])["text_config"]["rope_parameters"]
    assert (rope["rope_type"], rope["factor"], rope["original_max_position_embeddings"]) == ("yarn", factor, 262_144)
    assert rope["mrope_section"] == [11, 11, 10]
    sglang = plan_launch(LaunchRequest("sglang", context=context))
    assert "--json-model-override-args" in flags(sglang.commands[0])
    assert sglang.environment == {"SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN": "1"}


def test_several_nodes() -> None:
    launch = plan_launch(LaunchRequest("sglang", nodes=2, tensor_parallel=16))
    assert [flags(command)["--node-rank"] for command in launch.commands] == ["0", "1"]
    vllm = plan_launch(LaunchRequest("vllm", nodes=2, tensor_parallel=16))
    assert flags(vllm.commands[0])["--distributed-executor-backend"] == "ray"
    assert any("ray start --head" in note for note in vllm.notes)


def test_copies_of_the_two_heads_are_said_with_their_price() -> None:
    # 22,528 bytes per token in all with the prediction head; eight ranks keep four copies, so three too many
    extra = 3 * 22_528 * 262_144
    notes = plan_launch(LaunchRequest("vllm")).notes
    assert any("kept 4 times" in note and f"{extra / 1e9:.2f} GB more" in note for note in notes)
    assert not any("kept" in note for note in plan_launch(LaunchRequest("vllm", tensor_parallel=2)).notes)


def test_memory_per_device_is_checked() -> None:
    plan_launch(LaunchRequest("vllm", tensor_parallel=4, hardware=find_hardware("24g"), context=32_768))
    with pytest.raises(OutOfMemoryError, match="each device needs"):
        plan_launch(LaunchRequest("vllm", tensor_parallel=2, hardware=find_hardware("24g")))
    fp8 = LaunchRequest(
        "vllm", "Qwen/Qwen3.6-35B-A3B-FP8", tensor_parallel=2, hardware=find_hardware("24g"), context=32_768
    )
    assert plan_launch(fp8).plan is not None


@pytest.mark.parametrize(
    "options",
    [
        {"engine": "tgi"}, {"engine": "vllm", "nodes": 3}, {"engine": "vllm", "context": 2_000_000},
        {"engine": "sglang", "text_only": True}, {"engine": "vllm", "tensor_parallel": 3},
        {"engine": "vllm", "tensor_parallel": 0}, {"engine": "vllm", "model": "no such thing"},
        {"engine": "vllm", "hardware": find_hardware("4x24g")},
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(options: dict) -> None:
    with pytest.raises(UsageError, match="allowed is|cannot share"):
        plan_launch(LaunchRequest(**options))


def test_versions() -> None:
    assert check_version("vllm", "0.19.0") == "0.19.0"
    assert check_version("sglang", "0.5.10.post1") == "0.5.10.post1"
    assert check_version("vllm", "1.2.0+cpu") == "1.2.0+cpu"
    for engine, version in (("vllm", "0.18.9"), ("sglang", "0.5.9"), ("vllm", None)):
        with pytest.raises(BackendError, match="or newer") as error:
            check_version(engine, version)
        assert error.value.hint and "--print" in error.value.hint


def test_printed_commands_can_be_pasted(capsys) -> None:
    assert main(["serve", "--engine", "vllm", "--print", "--text-only", "--port", "8001"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    parts = shlex.split(last)
    assert parts[0] == "vllm" and "--language-model-only" in parts and "8001" in parts
    assert json.loads(parts[parts.index("--speculative-config") + 1])["method"] == "qwen3_next_mtp"


def test_the_kubernetes_manifest(capsys) -> None:
    yaml = pytest.importorskip("yaml", reason="PyYAML reads the manifest back")
    args = [
        "serve",
        "--engine",
        "vllm",
        "--print",
        "kubernetes",
        "--max-model-len",
        "524288",
        "--tensor-parallel-size",
        "4",
    ]
    assert main(args) == 0
    deployment, service = yaml.safe_load_all(capsys.readouterr().out)
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    assert container["command"][:2] == ["vllm", "serve"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 4
    assert container["env"] == [{"name": "VLLM_ALLOW_LONG_MAX_MODEL_LEN", "value": "1"}]
    assert service["spec"]["ports"] == [{"port": 8080, "targetPort": 8080}]
    assert main([*args, "--nodes", "2"]) == 2


def test_wrong_usage(capsys) -> None:
    assert main(["serve", "--print"]) == 2
    assert main(["serve", "--engine", "vllm", "--nodes", "2", "--tensor-parallel-size", "2"]) == 2
    assert "allowed" in capsys.readouterr().err
