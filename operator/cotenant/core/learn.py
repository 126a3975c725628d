"""What a good start of an engine teaches, read from its log; the next plan and the next start use it.

The lines are those of vLLM 0.26 to 0.33 (`v1/worker/gpu_worker.py`, `v1/worker/gpu/model_runner.py`, `v1/core/kv_cache_utils.py`).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import astuple, replace

from cotenant.core.share import GIB, MIB
from cotenant.core.snapshot import Learned
from cotenant.core.vllm import Engine

LOG_TAIL = 1 << 20
"""Characters of a log that are looked at, the newest."""
_GIB = r"([0-9]{1,6}(?:\.[0-9]{1,6})?) GiB"
_WEIGHTS = re.compile(rf"Model loading took {_GIB}")
_KV_BYTES = re.compile(rf"Available KV cache memory: {_GIB}")
_KV_IN_USE = re.compile(rf"Current kv cache memory in use is {_GIB}")
_KV_PINNED = re.compile(rf"reserved {_GIB} memory for KV Cache as specified by kv_cache_memory_bytes")
_KV_TOKENS = re.compile(r"GPU KV cache size: ([0-9]{1,3}(?:,[0-9]{3}){0,4}|[0-9]{1,15}) tokens")
_GRAPHS = re.compile(rf"Graph capturing finished in [0-9]{{1,6}} secs?, took {_GIB}")
SETTLED = 3600.0
"""Seconds of serving after which what an engine uses beyond its share may count for less than it was planned with: load comes
later than Ready."""
STEP = 64 * MIB
"""A learned overrun is written anew when it has grown by this much."""


def key(uri: str, engine: Engine, image: str, tensor_parallel: int, product: str, utilization: str) -> str:
    """Under which a start is remembered: everything its footprint depends on, the share last and readable.

    `engine` is the block as rendered (settled), `image` the engine image's version.
    """
    asked = (uri, image, tensor_parallel, product, *astuple(engine))
    return f"{hashlib.sha256(repr(asked).encode()).hexdigest()[:16]}/{utilization}"


def recall(learned: tuple[Learned, ...], model: str, wanted: str) -> Learned | None:
    """What is known of a start under this key; at another share its weights, graphs and overrun hold, its KV cache does not."""
    mine = [known for known in learned if known.model == model]
    for known in mine:
        if known.key == wanted:
            return known
    like = [known for known in mine if known.key.partition("/")[0] == wanted.partition("/")[0]]
    if not like:
        return None
    nearest = max(like, key=lambda known: (known.overrun or 0, known.key))
    return replace(nearest, key=wanted, kv_cache_tokens=None, kv_cache_bytes=None)


def learn(
    model: str, key: str, log: str, *, ready_seconds: int | None = None, before: Learned | None = None
) -> Learned:
    """What the log of a start that became ready says, on top of what was known. Ranks of a group: the largest weights, the least cache.

    vLLM prints two decimals: a cache is taken 0.005 GiB smaller, so that a start pinned to it is never larger than this one.
    """
    text = log[-LOG_TAIL:]
    known = before or Learned(model=model, key=key)
    pinned = _KV_PINNED.search(text) is not None
    found = [_bytes(size, -0.005) for size in _KV_BYTES.findall(text) or _KV_IN_USE.findall(text)]
    return replace(
        known,
        model=model,
        key=key,
        weights=max(map(_bytes, _WEIGHTS.findall(text)), default=known.weights),
        kv_cache_bytes=known.kv_cache_bytes if pinned else min(found, default=known.kv_cache_bytes),
        kv_cache_tokens=min(_tokens(text), default=known.kv_cache_tokens),
        cuda_graphs=max(map(_bytes, _GRAPHS.findall(text)), default=known.cuda_graphs),
        ready_seconds=known.ready_seconds if ready_seconds is None else ready_seconds,
    )


def overrun(before: int | None, planned: int, expected: int | None, seen: int, serving: float) -> int | None:
    """Bytes beyond its share to plan an engine with from now on, after it was seen to use `seen` beyond it; None = as planned.

    More than it was planned with counts at once. Less counts once it has served for an hour, and never for less than the estimate
    expects under load: an engine that is idle uses less than it will. What was learned never shrinks.
    """
    if before is not None:
        return seen if seen >= before + STEP else before
    if seen > planned:
        return seen
    return max(expected, seen) if expected is not None and serving >= SETTLED else None


def _tokens(text: str) -> list[int]:
    return [int(found.replace(",", "")) for found in _KV_TOKENS.findall(text)]


def _bytes(size: str, more: float = 0.0) -> int:
    return max(0, int((float(size) + more) * GIB))
