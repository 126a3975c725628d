"""The engine by vLLM's rules: measured cases as examples, what must always hold as properties. Pure, no clock."""

from __future__ import annotations

import itertools
import math
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sim.argv import BadArgumentsError, Command, parse
from tests.sim.card import Card, OutOfDeviceMemoryError, Process
from tests.sim.engine import Engine, Phase, Timing
from tests.sim.models import ModelSpec, lookup
from tests.sim.pod import message_of
from tests.sim.products import GIB, PRODUCTS

H200 = PRODUCTS["NVIDIA-H200"]
LLAMA_8B = lookup(("meta-llama/Llama-3.1-8B",), {})
QWEN_2B = ModelSpec(int(3.3 * GIB), 28_672, 32_768)
_pids = itertools.count(100, 10)


def card(product: str = "NVIDIA-H200") -> Card:
    return Card("GPU-0", 0, PRODUCTS[product])


def engine(
    on: Card, utilization: float, model: ModelSpec = LLAMA_8B, seconds: float = 90, seed: int = 0, **told: object
) -> Engine:
    command = Command("m", "m", utilization, max_model_len=8192, **told)  # type: ignore[arg-type]
    ranks = command.tensor_parallel
    first = next(_pids)
    return Engine(
        f"ns/{first}",
        command,
        model,
        (on,) * ranks,
        tuple(range(first, first + ranks)),
        Timing(seconds),
        Random(seed),
        float,
    )


def run(*engines: Engine, until: float = 1000.0) -> None:
    """Everything that is due, in order."""
    while (at := min(engine.next_at for engine in engines)) <= until:
        for each in engines:
            each.advance(at)


def test_an_engine_alone_uses_its_share_and_the_overrun() -> None:
    gpu = card()
    llama = engine(gpu, 0.70)

    llama.start(0.0)
    run(llama, until=90.0)

    share = math.ceil(gpu.usable * 0.70)
    assert llama.ready
    assert share + GIB // 2 <= gpu.used <= share + 3 * GIB
    assert any("Application startup complete." in line for line in llama.log)


def test_seventy_and_twenty_fit_one_after_the_other_and_a_third_is_refused_in_vllms_words() -> None:
    gpu = card()
    first, second, third = engine(gpu, 0.70), engine(gpu, 0.20, QWEN_2B), engine(gpu, 0.20, QWEN_2B)
    first.start(0.0)
    run(first, until=100.0)
    second.start(100.0)
    run(first, second, until=400.0)
    third.start(400.0)
    run(first, second, third)

    assert first.ready
    assert second.ready
    assert third.exit is not None
    assert third.exit.code == 1
    text = "\n".join(third.log)
    assert "ValueError: Free memory on device cuda:0 (" in text
    assert "/139.8 GiB) on startup is less than desired GPU memory utilization (0.2, 27.96 GiB)." in text
    assert "ValueError" not in message_of(
        text, "FallbackToLogsOnError", 1
    )  # measured: the cause stands before the last 2,048 bytes


def test_two_starts_at_the_same_second_take_each_others_memory_for_their_own() -> None:
    gpu = card()
    large, small = engine(gpu, 0.45, seed=1), engine(gpu, 0.45, QWEN_2B, seconds=85, seed=2)
    large.start(0.0)
    small.start(0.0)
    run(large, small)

    text = "\n".join(large.log + small.log)
    assert [large.exit and large.exit.code, small.exit and small.exit.code].count(1) >= 1
    assert "No available memory for the cache blocks" in text or "To serve at least one request" in text


def test_pinned_kv_needs_no_gate_but_the_free_check_still_runs() -> None:
    gpu = card()
    pinned = [engine(gpu, 0.40, kv_cache_memory_bytes=10 * GIB, seed=i) for i in range(2)]
    for each in pinned:
        each.start(0.0)
    run(*pinned)
    refused = engine(gpu, 0.92, kv_cache_memory_bytes=GIB)
    refused.start(1000.0)
    run(*pinned, refused, until=2000.0)

    assert all(each.ready and each.kv_bytes == 10 * GIB for each in pinned)
    assert refused.exit is not None
    assert "on startup is less than desired" in "\n".join(refused.log)


def test_a_neighbour_that_gives_back_more_than_we_took_ends_the_profile() -> None:
    gpu = card()
    gpu.open(Process(1, "train"))
    gpu.take(1, 60 * GIB)
    small = engine(gpu, 0.20, QWEN_2B)
    small.start(0.0)
    run(small, until=50.0)
    gpu.end(1)
    run(small)

    assert small.exit is not None
    assert "AssertionError: Error in memory profiling. Initial free memory" in "\n".join(small.log)


def test_a_neighbour_that_takes_in_the_window_shrinks_the_cache() -> None:
    alone, crowded = card(), card()
    a, b = engine(alone, 0.40), engine(crowded, 0.40)
    for each in (a, b):
        each.start(0.0)
    run(a)
    run(b, until=30.0)
    crowded.open(Process(1, "train"))
    crowded.take(1, 10 * GIB)
    run(b)

    assert a.kv_bytes - b.kv_bytes == 10 * GIB


def test_a_context_longer_than_the_cache_says_what_would_fit() -> None:
    gpu = card("NVIDIA-L40S")
    llama = engine(gpu, 0.50)
    llama.command = parse(("serve", "m", "--gpu-memory-utilization", "0.5", "--max-model-len", "131072"))
    llama.start(0.0)
    run(llama)

    text = "\n".join(llama.log)
    assert "To serve at least one request with the model's max seq len (131072), (16.00 GiB KV cache is needed" in text
    assert "the estimated maximum model length is" in text


def test_a_death_at_run_time_is_a_success_to_kubernetes_and_gives_memory_back_at_once() -> None:
    gpu = card()
    llama = engine(gpu, 0.5)
    llama.start(0.0)
    run(llama, until=95.0)
    llama.inject("die", 100.0)

    assert gpu.used == 0
    assert llama.exit is None
    run(llama)
    assert llama.exit is not None
    assert (llama.exit.code, llama.exit.reason) == (0, "Completed")


@pytest.mark.parametrize(
    ("at", "twice", "code"), [(5.0, True, None), (40.0, False, None), (40.0, True, 130), (95.0, False, 0)]
)
def test_sigterm_is_swallowed_while_loading_unless_it_comes_twice(at: float, twice: bool, code: int | None) -> None:
    gpu = card()
    llama = engine(gpu, 0.5)
    llama.start(0.0)
    run(llama, until=at)
    llama.terminate(at, twice=twice)
    run(llama, until=at + 29)

    assert (llama.exit.code if llama.exit else None) == code
    if code is None:
        llama.kill()
        assert llama.exit is not None
        assert llama.exit.code == 137
    assert gpu.used == 0


def test_every_rank_takes_its_share_of_its_own_card() -> None:
    cards = (card(), Card("GPU-1", 1, H200))
    pair = engine(cards[0], 0.45, LLAMA_8B, tensor_parallel=2)
    pair.cards = cards
    pair.start(0.0)
    run(pair)

    share = math.ceil(H200.usable * 0.45)
    assert pair.ready
    assert all(share + 2 * GIB < each.used <= share + 3 * GIB for each in cards)  # measured +2.75 and +2.96


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("m", "--swap-space", "4"), "unrecognized arguments: --swap-space 4"),
        (("m", "--gpu-memory-utilization", "half"), "invalid float value: 'half'"),
        (("m", "--max-model-len", "4GiB"), "argument --max-model-len: invalid"),
        (("m", "--limit-mm-per-prompt", "{image: 3}"), "argument --limit-mm-per-prompt: invalid"),
        ((), "model_tag"),
    ],
)
def test_what_argparse_refuses(words: tuple[str, ...], complaint: str) -> None:
    with pytest.raises(BadArgumentsError, match="vllm serve: error: ") as refused:
        parse(("vllm", "serve", *words))
    assert complaint in str(refused.value)


def test_what_argparse_takes() -> None:
    told = parse(
        (
            "vllm",
            "serve",
            "org/m",
            "--gpu_memory_utilization=0.70",
            "-tp",
            "2",
            "--max-model-len",
            "auto",
            "--enforce-eager",
        )
    )
    assert (told.model, told.utilization, told.tensor_parallel, told.auto_max_model_len, told.eager) == (
        "org/m",
        0.7,
        2,
        True,
        True,
    )
    assert parse(("m", "--kv-cache-memory=4G", "--max-model-len", "32k")).kv_cache_memory_bytes == 4 * GIB


# ------------------------------------------------------------------------------------------------------------ properties
MODELS = st.builds(
    ModelSpec,
    weights=st.integers(GIB, 60 * GIB),
    kv_per_token=st.sampled_from([28_672, 131_072, 163_840]),
    max_len=st.sampled_from([4096, 32_768]),
)


@given(st.lists(st.tuples(MODELS, st.floats(0.05, 0.9), st.floats(0, 200), st.integers(0, 99)), min_size=1, max_size=5))
@settings(max_examples=150, deadline=None)
def test_memory_is_never_over_and_always_given_back(starts: list[tuple[ModelSpec, float, float, int]]) -> None:
    gpu = card()
    engines = [engine(gpu, utilization, model, seed=seed) for model, utilization, _, seed in starts]
    begins = sorted(zip(engines, (at for _, _, at, _ in starts), strict=True), key=lambda pair: pair[1])
    for each, at in begins:
        run(*engines, until=at)
        assert 0 <= gpu.used <= gpu.usable
        each.start(at)
    run(*engines)
    assert 0 <= gpu.used <= gpu.usable
    assert all(each.phase is Phase.SERVING or each.exit is not None for each in engines)

    for each in engines:
        each.kill()
    assert gpu.used == 0
    assert not gpu.processes


@given(
    st.lists(st.integers(5, 60), min_size=1, max_size=6).filter(lambda shares: sum(shares) <= 95),
    st.integers(0, 999),
)
@settings(max_examples=150, deadline=None)
def test_what_the_ledger_allows_starts_one_after_the_other_and_stays(shares: list[int], seed: int) -> None:
    """`sum(flag x T + 3 GiB) <= T`, one start at a time: nobody fails, at the start or later."""
    gpu = card()
    if sum(shares) * gpu.usable // 100 + 3 * GIB * len(shares) > gpu.usable:
        return
    model = ModelSpec(GIB, 28_672, 8192)
    engines = [
        engine(gpu, share / 100, model, seed=seed + i, max_num_batched_tokens=2048) for i, share in enumerate(shares)
    ]
    now = 0.0
    for each in engines:
        each.start(now)
        run(*engines, until=now + 90.0)
        assert each.ready, each.log[-60:]
        now += 90.0
    run(*engines)

    assert all(each.ready for each in engines)


@given(
    st.lists(
        st.tuples(st.sampled_from(["take", "give", "end"]), st.integers(0, 3), st.integers(0, 200 * GIB)), max_size=40
    )
)
def test_a_card_never_gives_more_than_it_has(steps: list[tuple[str, int, int]]) -> None:
    gpu = card()
    for what, pid, amount in steps:
        gpu.open(Process(pid, "p"))
        try:
            if what == "take":
                gpu.take(pid, amount)
            elif what == "give":
                gpu.give(pid, amount)
            else:
                gpu.end(pid)
        except OutOfDeviceMemoryError as refused:
            assert refused.wanted > gpu.free  # noqa: PT017 - the refusal is one of two good answers
        assert 0 <= gpu.used <= gpu.usable
