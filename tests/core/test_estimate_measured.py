"""The estimate of today against what real engines took on H200s and an H100 (`tests/gpu/measure_estimates.py`; figures in `tests/gpu/data`).

Targets: weights within 1 %, KV tokens within 2 %, peak within 3 % or 1 GiB. What misses one is named here with its reason.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cotenant import catalogue
from cotenant.core.estimate.configparse import parse_config
from cotenant.core.estimate.engine import Estimate, estimate
from cotenant.core.share import GIB
from cotenant.core.vllm import Engine

DATA = Path(__file__).parents[1] / "gpu" / "data"
WEIGHTS, TOKENS, PEAK = 0.01, 0.02, 0.03
MISSES: dict[str, dict[str, str]] = {
    "tokens": {
        "h200-3/llama-1b@again": "the second start finds compiled kernels on disk and times nothing: 7 % more cache. Ours is a first start's."
    },
}
"""By part and run: why it is outside its target."""


def _runs() -> dict[str, dict[str, Any]]:
    """Every start that became ready, by file and case."""
    found = {}
    for path in sorted(DATA.glob("h?00-estimates-*.json")):
        card, _, number = path.stem.partition("-estimates-")
        for name, run in json.loads(path.read_text())["runs"].items():
            if "real" in run:
                found[f"{card}-{number}/{name}"] = run
    return found


RUNS = _runs()


def estimated(run: dict[str, Any]) -> Estimate:
    """What we say of a run's model with the flags it was started with."""
    flags = dict(argument.lstrip("-").split("=", 1) for argument in run["arguments"] if "=" in argument)
    engine = Engine(
        max_model_len=int(flags["max-model-len"]),
        max_num_seqs=int(flags["max-num-seqs"]),
        max_num_batched_tokens=int(flags["max-num-batched-tokens"]),
        max_capture_size=int(flags["max-cudagraph-capture-size"]) if "max-cudagraph-capture-size" in flags else None,
        cuda_graphs="--enforce-eager" not in run["arguments"],
        quantization=flags.get("quantization"),
    )
    return estimate(parse_config({**catalogue.models()[run["model"]]["config"], **run.get("config", {})}), engine)


def off(part: str, name: str, estimated_value: float, real: float, target: float) -> None:
    """Within the target, unless it is named as a miss; and what is named does miss, or the name may go."""
    within = abs(estimated_value - real) <= target
    if name in MISSES.get(part, {}):
        assert not within, f"{part} of {name} is within its target now: take it off MISSES"
        return
    assert within, f"{part} of {name}: {estimated_value:,.0f} estimated, {real:,} measured"


def test_eight_architectures_were_measured() -> None:
    architectures = {catalogue.models()[run["model"]]["config"]["model_type"] for run in RUNS.values()}

    assert len(architectures) >= 8


@pytest.mark.parametrize("name", RUNS)
def test_weights_are_within_one_per_cent(name: str) -> None:
    real = RUNS[name]["real"]["weights"]

    off("weights", name, estimated(RUNS[name]).weights.value, real, WEIGHTS * real)


@pytest.mark.parametrize("name", RUNS)
def test_tokens_are_within_two_per_cent(name: str) -> None:
    run, real = RUNS[name], RUNS[name]["real"]["kvTokens"]
    found = estimated(run).kv_tokens(run["share"])

    off("tokens", name, found.value, real, TOKENS * real)
    assert found.low <= real <= found.high


@pytest.mark.parametrize("name", [name for name, run in RUNS.items() if run["real"]["peak"] is not None])
def test_the_peak_is_within_three_per_cent_or_a_gibibyte(name: str) -> None:
    run, real = RUNS[name], RUNS[name]["real"]["peak"]
    found = estimated(run).peak(run["share"])

    off("peak", name, found.value, real, max(PEAK * real, GIB))
    assert found.low <= real <= found.high


@pytest.mark.parametrize("name", RUNS)
def test_graphs_are_within_their_bar(name: str) -> None:
    found = estimated(RUNS[name]).cuda_graphs

    assert found.low <= (RUNS[name]["real"]["graphs"] or 0) <= found.high
