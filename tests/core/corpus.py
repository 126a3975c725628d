"""The corpus of deaths: each log of tests/core/deaths and what it must be judged as."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from cotenant.core.oom.deaths import Kind
from cotenant.core.oom.evidence import Evidence

LOGS = Path(__file__).parent / "deaths"


@cache
def log(name: str) -> str:
    return (LOGS / f"{name}.log").read_text(encoding="utf-8")


STARTS: dict[str, Kind] = {
    "no-room": Kind.NO_ROOM_AT_START,
    "no-room-tp2": Kind.NO_ROOM_AT_START,
    "no-room-external-weights": Kind.NO_ROOM_AT_START,
    "no-room-0.11": Kind.NO_ROOM_AT_START,
    "nccl-out-of-memory": Kind.NO_ROOM_AT_START,
    "profile-disturbed": Kind.PROFILE_DISTURBED,
    "no-kv-memory": Kind.NO_KV_CACHE_MEMORY,
    "no-kv-memory-multimodal": Kind.NO_KV_CACHE_MEMORY,
    "kv-too-small": Kind.KV_CACHE_TOO_SMALL,
    "kv-too-small-no-estimate": Kind.KV_CACHE_TOO_SMALL,
    "kv-too-small-pinned": Kind.KV_CACHE_TOO_SMALL,
    "kv-too-small-auto": Kind.KV_CACHE_TOO_SMALL,
    "kv-too-small-wrapped-tp2": Kind.KV_CACHE_TOO_SMALL,
    "weights": Kind.WEIGHTS_DO_NOT_FIT,
    "weights-v2-runner": Kind.WEIGHTS_DO_NOT_FIT,
    "profile": Kind.PROFILE_OUT_OF_MEMORY,
    "profile-wrapped-tp2": Kind.PROFILE_OUT_OF_MEMORY,
    "profile-sampler": Kind.PROFILE_OUT_OF_MEMORY,
    "profile-pooler": Kind.PROFILE_OUT_OF_MEMORY,
    "kv-allocation": Kind.KV_CACHE_OUT_OF_MEMORY,
    "graph-capture": Kind.GRAPH_CAPTURE_OUT_OF_MEMORY,
    "graph-capture-cuda-error": Kind.GRAPH_CAPTURE_OUT_OF_MEMORY,
    "worker-segfault-at-start": Kind.WORKER_LOST,
    "shared-memory": Kind.SHARED_MEMORY,
    "nccl": Kind.NCCL,
    "port": Kind.PORT_IN_USE,
    "device-busy": Kind.DEVICE_BUSY,
    "mps-not-ready": Kind.DEVICE_BUSY,
    "no-device": Kind.NO_DEVICE,
    "slow-start": Kind.SLOW_START,
    "stopped-while-starting": Kind.SLOW_START,
    "validation": Kind.BAD_FLAG,
    "unsupported-model": Kind.BAD_FLAG,
    "source-gated": Kind.SOURCE_MISSING,
    "source-missing": Kind.SOURCE_MISSING,
    "source-no-weights": Kind.SOURCE_MISSING,
    "source-unreachable": Kind.SOURCE_UNREACHABLE,
    "disk-full": Kind.DISK_FULL,
    "unknown": Kind.UNKNOWN,
}
REFUSED: dict[str, Kind] = {"bad-flag": Kind.BAD_FLAG, "bad-argument-value": Kind.BAD_FLAG}
RUNS: dict[str, Kind] = {
    "runtime": Kind.RUNTIME_OUT_OF_MEMORY,
    "runtime-wrapped-tp2": Kind.RUNTIME_OUT_OF_MEMORY,
    "sleep-wake": Kind.SLEEP_MODE_OUT_OF_MEMORY,
    "sleep-disturbed": Kind.SLEEP_DISTURBED,
    "worker-killed": Kind.WORKER_LOST,
    "worker-bus-error": Kind.SHARED_MEMORY,
    "device-error": Kind.DEVICE_ERROR,
    "hung": Kind.ENGINE_HUNG,
    "engine-core-killed": Kind.ENGINE_DIED,
    "engine-bug": Kind.ENGINE_DIED,
}


def evidence(name: str) -> Evidence:
    """As the kubelet reports it: exit 1 for a failed start, 2 for a refused flag, 0 for a death while serving."""
    if name in RUNS:
        return Evidence(exit_code=0, reason="Completed", log=log(name), was_ready=True)
    return Evidence(exit_code=2 if name in REFUSED else 1, reason="Error", log=log(name), message=log(name)[-2048:])
