"""Choosing a kernel variant."""

from __future__ import annotations

import pytest

from sterna import _native
from sterna.backends.native import NativeBackend, NativeOpSet, choose_variant, variants
from sterna.backends.native import variants as variants_module
from sterna.errors import BackendError
from support.odd_model import ODD


def test_generic_always_runs_and_the_others_say_why_not() -> None:
    table = {variant["name"]: variant for variant in variants()}
    assert list(table) == ["generic", "avx2", "avx2_vnni", "avx512", "avx512_vnni"]
    assert table["generic"]["available"]
    for variant in table.values():
        assert variant["available"] == (variant["reason"] == "")


def test_the_fastest_that_can_run_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STERNA_NATIVE_VARIANT", raising=False)
    assert choose_variant() == [variant["name"] for variant in variants() if variant["available"]][-1]


def test_the_environment_forces_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STERNA_NATIVE_VARIANT", "generic")
    assert NativeOpSet().variant == "generic"


def test_a_variant_that_cannot_run_is_an_error_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    table = [("generic", "", False), ("avx512", "the CPU has no AVX-512F", False)]
    monkeypatch.setattr(_native, "variants", lambda: table)
    monkeypatch.setenv("STERNA_NATIVE_VARIANT", "avx512")
    with pytest.raises(BackendError, match="avx512 cannot run here: the CPU has no AVX-512F") as error:
        choose_variant()
    assert error.value.hint == "allowed are generic"
    with pytest.raises(BackendError, match="there is no kernel variant 'sse9', this machine can run generic"):
        choose_variant("sse9")
    assert variants_module()[1]["reason"] == "the CPU has no AVX-512F"


def test_the_extension_refuses_impossible_variants_itself() -> None:
    with pytest.raises(ValueError, match="there is no kernel variant neon"):
        _native.Ops("neon")
    for name, reason, _ in _native.variants():
        if reason:
            with pytest.raises(ValueError, match=reason):
                _native.Ops(name)


def test_bad_cache_types_and_block_sizes_are_refused() -> None:
    with pytest.raises(BackendError, match="KV type is 'int4', allowed are bfloat16 and float32"):
        NativeOpSet(kv_dtype="int4")  # type: ignore[arg-type]
    with pytest.raises(BackendError, match="block size is 24, allowed are multiples of 16"):
        NativeOpSet().allocate_kv(1, 24, ODD)


def test_variant_and_cache_type_are_part_of_the_fingerprint() -> None:
    names = {NativeBackend(variant="generic", kv_dtype=dtype).variant() for dtype in ("bfloat16", "float32")}
    assert names == {"generic bfloat16", "generic float32"}
