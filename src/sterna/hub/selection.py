"""Which files of a repository a model needs: no pickles, no other framework's weights, no vision where it is not wanted."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from sterna.checkpoint.checkpoint import INDEX, SINGLE
from sterna.checkpoint.names import canonical_name
from sterna.errors import CheckpointError, UsageError
from sterna.hub.repository import HubFile, Repository

TEXT_FILES = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
    "vocab.json", "merges.txt", "quantize_config.json", "quantization_config.json", "hf_quant_config.json", INDEX,
    "README.md", "LICENSE",
)  # fmt: skip
VISION_FILES = ("preprocessor_config.json", "video_preprocessor_config.json")
# GGUF files that are no language model: a vision tower, a prediction head alone, a quantiser's statistics.
_NO_MODEL = ("*mmproj*", "mtp-*", "*imatrix*")
_GGUF_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


@dataclass(frozen=True, slots=True)
class GgufModel:
    """One model of a GGUF repository: its file, or its shards in order."""

    name: str
    files: tuple[HubFile, ...]

    @property
    def size(self) -> int:
        """Bytes of all shards."""
        return sum(file.size for file in self.files)


def text_files(repository: Repository, *, text_only: bool) -> list[HubFile]:
    """Configuration, tokenizer, template, index and licence, as far as they are there."""
    wanted = TEXT_FILES if text_only else (*TEXT_FILES, *VISION_FILES)
    return [file for file in repository.files if file.path in wanted]


def named_files(repository: Repository, patterns: Sequence[str]) -> list[HubFile]:
    """The files that match any of the patterns; `UsageError` for a pattern that matches none."""
    chosen: list[HubFile] = []
    for pattern in patterns:
        found = [f for f in repository.files if fnmatchcase(f.path, pattern) or fnmatchcase(f.path, f"*/{pattern}")]
        if not found:
            some = ", ".join(file.path for file in repository.files if is_weight(file))[:400]
            raise UsageError(f"{repository.repo_id} has no file {pattern!r}", hint=f"its weights are in {some}")
        chosen += [file for file in found if file not in chosen]
    return chosen


def is_weight(file: HubFile) -> bool:
    """Whether a file holds weights in a format that we read."""
    return file.path.endswith((".safetensors", ".gguf"))


def gguf_models(repository: Repository) -> list[GgufModel]:
    """The language models among the GGUF files, largest first, shards together."""
    groups: dict[str, list[HubFile]] = {}
    for file in repository.files:
        base = file.path.rpartition("/")[2].lower()
        if base.endswith(".gguf") and not any(fnmatchcase(base, pattern) for pattern in _NO_MODEL):
            match = _GGUF_SHARD.fullmatch(file.path)
            groups.setdefault(match[1] if match else file.path, []).append(file)
    models = [GgufModel(name, tuple(sorted(files, key=lambda f: f.path))) for name, files in groups.items()]
    return sorted(models, key=lambda model: (-model.size, model.name))


def shards(repository: Repository, index: bytes | None, *, text_only: bool) -> tuple[list[HubFile], dict[str, str]]:
    """The safetensors files of the model, and the tensors (name -> file) that ``text_only`` leaves out.

    A shard is left out when it holds nothing but the vision tower. Raises `CheckpointError` for a repository with no
    weights that we read, with both an index and a single file, or whose index names a file that is not there.
    """
    single = repository.file(SINGLE)
    if index is None:
        if single is None:
            raise CheckpointError(
                f"{repository.repo_id} holds neither {SINGLE} nor {INDEX} nor a GGUF model",
                hint="checkpoints of other formats (pickles, ONNX) are not read; name a file with --file",
            )
        return [single], {}
    if single is not None:
        raise CheckpointError(f"{repository.repo_id} holds both {SINGLE} and {INDEX}", hint="choose with --file")
    weight_map = read_weight_map(index, where=f"{INDEX} of {repository.repo_id}")
    vision_only = {
        shard
        for shard in set(weight_map.values())
        if all(canonical_name(n).startswith("model.visual.") for n, s in weight_map.items() if s == shard)
    }
    left_out = {n: s for n, s in weight_map.items() if s in vision_only} if text_only else {}
    wanted = sorted(set(weight_map.values()) - set(left_out.values()))
    found = [repository.file(shard) for shard in wanted]
    missing = [shard for shard, file in zip(wanted, found, strict=True) if file is None]
    if missing:
        raise CheckpointError(
            f"{INDEX} of {repository.repo_id} names {missing[0]}, which is not there ({len(missing)} shards are missing)",
            hint="the upload is incomplete: ask its owner, or take another revision",
        )
    return [file for file in found if file is not None], left_out


def read_weight_map(index: bytes, *, where: str) -> Mapping[str, str]:
    """The map from tensor names to files of an index."""
    try:
        weight_map = json.loads(index.decode("utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{where} is not a safetensors index ({error})") from error
    if not isinstance(weight_map, dict) or not all(isinstance(value, str) for value in weight_map.values()):
        raise CheckpointError(f"{where} has no weight_map from tensor names to file names")
    return weight_map


def without_tensors(index: bytes, left_out: Mapping[str, str]) -> bytes:
    """The index without some tensors, so that it describes the files that are there."""
    content = json.loads(index)
    content["weight_map"] = {n: s for n, s in content["weight_map"].items() if n not in left_out}
    content.get("metadata", {}).pop("total_size", None)
    return json.dumps(content, indent=2, sort_keys=True).encode()
