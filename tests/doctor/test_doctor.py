"""The doctor on a tiny random model: it passes on a sound engine, and every kind of damage makes its check fail."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sterna.cli import main as cli
from sterna.config import EngineConfig
from sterna.doctor import DoctorRun
from sterna.llm import LLM
from sterna.sessions.keeper import SessionKeeper
from support.tiny_checkpoint import write_tiny_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def llm(checkpoint, monkeypatch):
    monkeypatch.setenv("STERNA_NUM_THREADS", "1")
    config = EngineConfig(max_model_len=1024, block_size=16)
    with LLM.load(checkpoint, backend="native", engine_config=config) as loaded:
        yield loaded


def statuses(llm):
    return {check.name: check for check in DoctorRun(llm).checks()}


def test_a_sound_engine_passes_and_is_left_empty(llm):
    found = statuses(llm)
    assert not [check for check in found.values() if check.status == "FAIL"]
    assert all(check.detail for check in found.values())
    for name in ("chunked = whole", "decode = prefill", "hit = miss", "parallel N = 1", "restored = continuous"):
        assert found[name].status == "PASS"
        assert found[name].figures["rows"] > 0
        assert found[name].figures["differing_rows"] == 0
    assert found["hit = miss"].figures["cached_tokens"] > 0
    audit = llm.engine.cache.audit()
    assert (audit.free_blocks, audit.free_states) == (audit.blocks, audit.states)


def test_a_state_that_is_not_copied_fails_hit_equals_miss(llm, monkeypatch):
    monkeypatch.setattr(llm.engine.cache, "copier", type("Broken", (), {
        "copy_state": lambda self, source, target: llm.backend.copy_state(-1, target),
        "copy_blocks": lambda self, pairs: llm.backend.copy_blocks(pairs),
    })())  # fmt: skip
    check = DoctorRun(llm).hit_equals_miss()
    assert check.status == "FAIL"
    assert check.figures["differing_rows"] > 0


def test_a_state_that_comes_back_changed_fails_restored_equals_continuous(llm, monkeypatch):
    restore = llm.backend.restore_state

    def wrong(slot, snapshot):
        changed = snapshot.copy()
        changed.view(np.float32)[7] += 0.5
        restore(slot, changed)

    monkeypatch.setattr(llm.backend, "restore_state", wrong)
    check = DoctorRun(llm).restored_equals_continuous()
    assert check.status == "FAIL"
    assert check.figures["differing_rows"] > 0


def test_a_session_that_is_not_found_again_fails(llm, monkeypatch):
    monkeypatch.setattr(SessionKeeper, "restore", lambda self, namespace, key_ids: None)
    check = DoctorRun(llm).restored_equals_continuous()
    assert (check.status, check.figures["restored_tokens"]) == ("FAIL", 0)


def test_a_cache_shared_between_keys_fails(llm, monkeypatch):
    add = llm.engine.add_request
    monkeypatch.setattr(llm.engine, "add_request", lambda *args, **kw: add(*args, **(kw | {"namespace": "x"})))
    check = DoctorRun(llm).hit_equals_miss()
    assert check.status == "FAIL"
    assert "across namespaces" in check.detail


def test_an_answer_that_depends_on_the_company_fails(llm, monkeypatch):
    forward = llm.backend.model.head

    def wrong(x, norm, batch):
        logits = forward(x, norm, batch)
        shift = 1e-6 * (len(batch.state_slots) > 1)
        values = logits.to_numpy() + shift
        return type("Shifted", (), {"hidden": logits.hidden, "to_numpy": lambda self: values.astype("float32")})()

    monkeypatch.setattr(llm.backend.model, "head", wrong)
    assert DoctorRun(llm).parallel_equals_alone().status == "FAIL"


@pytest.mark.parametrize(("pool", "figure"), [("blocks", "lost_blocks"), ("states", "lost_states")])
def test_a_leak_fails(llm, monkeypatch, pool, figure):
    monkeypatch.setattr(getattr(llm.engine.cache, pool), "free", lambda freed: None)
    check = DoctorRun(llm).cancelled_requests_leak_nothing()
    assert check.status == "FAIL"
    assert check.figures[figure] > 0


def test_an_exception_is_a_failed_check(llm, monkeypatch):
    monkeypatch.setattr(llm.engine, "step", lambda: 1 / 0)
    found = statuses(llm)
    assert found["chunked = whole"].status == "FAIL"
    assert "ZeroDivisionError" in found["chunked = whole"].detail


def test_the_command_prints_one_json_line(checkpoint, monkeypatch, capsys):
    monkeypatch.setenv("STERNA_NUM_THREADS", "1")
    flags = ["doctor", "--json", "--model", str(checkpoint), "--max-model-len", "256"]
    assert cli.main(flags) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {check["status"] for check in result["checks"]} <= {"PASS", "SKIP"}
    assert result["kernels"]["variant"] in [v["name"] for v in result["kernels"]["variants"] if v["available"]]
    assert result["model"]["bytes"]["total"] > result["model"]["bytes"]["weight_bytes"] > 0


def test_the_command_exits_with_1_when_a_check_fails(checkpoint, monkeypatch, capsys):
    monkeypatch.setenv("STERNA_NUM_THREADS", "1")
    monkeypatch.setattr(DoctorRun, "decode_equals_prefill", lambda self: 1 / 0)
    assert cli.main(["doctor", "--model", str(checkpoint), "--max-model-len", "256"]) == 1
    out = capsys.readouterr().out
    assert "FAIL  decode = prefill: ZeroDivisionError" in out
    assert out.splitlines()[-1] == "failed: decode = prefill"
