"""What a model costs on a card: weights, KV cache per token, activations, graphs, overrun."""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from random import Random

from tests.sim.products import GIB, MIB

DEFAULT_CONTEXT = 32_768


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model as one engine sees it. Bytes; tensor parallelism divides weights and KV."""

    weights: int
    kv_per_token: int = 131_072
    max_len: int = DEFAULT_CONTEXT
    """Context length of its config: what runs where --max-model-len is absent."""
    load_seconds: float | None = None
    """From container start to Ready; None = the simulator's own range."""
    overrun: tuple[int, int] | None = None
    """Bytes beyond the share (after start, under load); None = drawn from the seed."""


# Measured on an H200 with vLLM 0.26.0, 2026-11-21, where a figure has decimals; KV per token = 2 x layers x KV heads x head size x 2.
KNOWN: Mapping[str, ModelSpec] = {
    "*mistral-small-3*24b*": ModelSpec(int(43.91 * GIB), 163_840, 131_072),
    "*dots.ocr*": ModelSpec(int(5.66 * GIB), 28_672, 131_072),
    "*llama-3*8b*": ModelSpec(int(14.99 * GIB), 131_072, 131_072),
    "*qwen3-8b*": ModelSpec(int(15.27 * GIB), 147_456, 40_960),
    "*llama-3*70b*": ModelSpec(int(131.4 * GIB), 327_680, 131_072),
    "*qwen3-32b*": ModelSpec(int(61.0 * GIB), 262_144, 40_960),
}
_SIZE = re.compile(r"(?<![a-z0-9.])(\d+(?:\.\d+)?)\s*b(?![a-z0-9])")
_WEIGHT_FACTOR = {
    "fp8": 0.57,
    "modelopt": 0.57,
    "awq": 0.33,
    "gptq": 0.33,
    "auto_awq": 0.33,
    "auto_gptq": 0.33,
    "mxfp4": 0.3,
}
"""Part of the bf16 weights that stays: 15.0 -> 8.5 GiB measured for Llama-3.1-8B in fp8; 4-bit by the rule of thumb."""


def lookup(names: tuple[str, ...], settings: Mapping[str, ModelSpec]) -> ModelSpec:
    """The model of these names: from the settings, the known ones, the size in a name (`8b`), else from a hash."""
    lower = tuple(name.lower() for name in names)
    for table in (settings, KNOWN):
        for pattern, spec in table.items():
            if any(fnmatch.fnmatchcase(name, pattern.lower()) for name in lower):
                return spec
    for name in lower:
        if size := _SIZE.search(name):
            billions = float(size[1])
            return ModelSpec(int(billions * 2e9), int(16_384 * max(1.0, min(billions, 20.0))))
    chance = Random(hashlib.sha256(names[0].encode()).digest())
    return ModelSpec(chance.randint(2, 8) * GIB, 65_536)


@dataclass(frozen=True, slots=True)
class Footprint:
    """What one rank of one engine takes, in bytes."""

    weights: int
    kv_per_token: int
    activation: int
    graphs: int
    context: int
    """CUDA context, NCCL and cuBLAS: gone from free before the share is looked at (0.5 GiB measured; 1.5 with NCCL)."""
    late: int
    """Outside the share, taken while graphs are captured and kernels warmed up."""
    creep: int
    """Outside the share, taken under load."""


def footprint(
    spec: ModelSpec, *, ranks: int, batched_tokens: int, quantization: str | None, kv_dtype: str | None,
    eager: bool, capture_size: int, chance: Random,
) -> Footprint:  # fmt: skip
    """One rank's bytes. Activations: 0.24 / 0.88 / 3.41 GiB measured at 2,048 / 8,192 / 32,768 batched tokens (8B)."""
    factor = next((f for q, f in _WEIGHT_FACTOR.items() if quantization and quantization.startswith(q)), 1.0)
    weights = int(spec.weights * factor) // ranks
    width = 0.7 + 0.3 * min(3.0, weights / (15 * GIB))
    context = GIB // 2 if ranks == 1 else 3 * GIB // 2
    if spec.overrun is not None:
        start, load = spec.overrun
    else:
        # Measured over share: 0.5..2.0 after start and 0.7..2.9 under load with one rank; 2.4..2.8 and 2.7..3.0 with two.
        low, high = (512, 1900) if ranks == 1 else (2400, 2750)
        start = chance.randint(low, high) * MIB
        load = min(start + chance.randint(60, 900) * MIB, 2_980 * MIB)
    context = min(context, start)
    per_token = spec.kv_per_token // ranks
    return Footprint(
        weights=weights,
        kv_per_token=max(1, per_token // 2 if kv_dtype and kv_dtype.startswith("fp8") else per_token),
        activation=int(0.107 * GIB * width * batched_tokens / 1024),
        graphs=0 if eager else int(0.9 * GIB * min(1.0, capture_size / 512)),
        context=context,
        late=start - context,
        creep=max(0, load - start),
    )


def with_load_seconds(spec: ModelSpec, seconds: float) -> ModelSpec:
    """The same model with another start time."""
    return replace(spec, load_seconds=seconds)
