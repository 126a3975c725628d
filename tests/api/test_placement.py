"""A ModelPlacement is read once, completely, and what cannot be acted on is named by its path."""

from __future__ import annotations

from typing import Any

import pytest

from cotenant.api.placement import parse
from cotenant.core.share import Auto, Bytes, Percent
from cotenant.core.snapshot import Invalid, Remedy, Spread


def body(model: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "namespace": "ns",
            "name": "p",
            "uid": "u",
            "generation": 3,
            "creationTimestamp": "2026-11-21T00:00:00Z",
        },
        "spec": {"models": [{"name": "m", "uri": "hf://org/m", "share": "70%"} | model], **spec},
    }


def test_every_field_arrives() -> None:
    engine = {
        "name": "vllm",
        "maxModelLen": 4096,
        "cudaGraphs": {"enabled": True, "maxCaptureSize": 8},
        "limitMMPerPrompt": {"image": 3},
    }
    written = {
        "share": "12.5%",
        "perNode": [{"selector": {"a": "b"}, "share": "60Gi"}],
        "replicas": 2,
        "tensorParallelSize": 4,
        "spread": "Node",
        "priority": 7,
        "engine": engine,
        "resources": {"cpu": "1500m", "memory": "1Gi"},
        "cache": {"claim": "hub-cache"},
        "onOutOfMemory": {"allow": ["Move", "GrowShare"], "maxShare": "80%", "maxAttempts": 2},
    }
    record = parse(body(written, headroom="10%", nodes={"selector": {"z": "1", "a": "2"}}))
    model = record.models[0]
    assert (record.generation, record.headroom, record.selector) == (3, 1000, (("a", "2"), ("z", "1")))
    assert (model.share, model.per_node[0].share) == (Percent(1250), Bytes(60 << 30))
    assert (model.replicas, model.tensor_parallel, model.spread, model.priority) == (2, 4, Spread.NODE, 7)
    assert (model.engine.max_model_len, model.engine.max_capture_size, model.engine.limit_mm_per_prompt) == (
        4096,
        8,
        '{"image":3}',
    )
    assert (model.cpu, model.memory, model.served_name) == (1500, 1 << 30, "m")
    assert model.cache_claim == "hub-cache"
    assert model.on_out_of_memory.allow == (Remedy.GROW_SHARE, Remedy.MOVE)


def test_auto_is_not_a_number() -> None:
    model = parse(body({"share": "auto", "engine": {"maxModelLen": "auto"}})).models[0]
    assert model.share == Auto()
    assert model.engine.auto_max_model_len
    assert model.engine.max_model_len is None


@pytest.mark.parametrize(
    "argument", ["--gpu_memory_utilization=0.9", "--gpu-mem=0.9", "-tp=2", "--api-key=x", "--trust-remote-code"]
)
def test_a_flag_of_ours_is_named_in_any_spelling(argument: str) -> None:
    record = parse(body({"engine": {"extraArgs": ["--enable-prefix-caching", argument]}}))
    assert record.invalid is not None
    assert record.invalid.path == "spec.models[0].engine.extraArgs[1]"


def test_settings_that_vllm_would_refuse_together_are_named() -> None:
    record = parse(body({"engine": {"maxNumSeqs": 64, "maxNumBatchedTokens": 32}}))
    assert record.invalid is not None
    assert record.invalid.path == "spec.models[0].engine"


def test_what_an_older_schema_let_through_is_invalid_not_a_crash() -> None:
    record = parse(body({"share": "lots"}))
    assert record.models == ()
    assert isinstance(record.invalid, Invalid)
    assert record.invalid.path == "spec.models[0].share"


def test_fields_of_a_newer_version_are_ignored() -> None:
    assert parse(body({"futureField": 1})).invalid is None


def test_a_status_broken_by_hand_is_begun_afresh() -> None:
    broken = body({}) | {"status": {"models": "none"}}
    assert parse(broken).status.raw == ""
