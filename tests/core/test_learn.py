"""What starts teach: the lines of vLLM, as it wrote them."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from cotenant.core.learn import SETTLED, STEP, key, learn, overrun, recall
from cotenant.core.share import GIB
from cotenant.core.snapshot import Learned
from cotenant.core.vllm import Engine

# ruff: noqa: E501 - log lines are as long as they are
EIGHT_B = """\
(EngineCore pid=311) INFO 11-21 04:12:40 [model_runner.py:295] Model loading took 14.97 GiB memory and 2.412563 seconds
(EngineCore pid=311) INFO 11-21 04:12:58 [gpu_worker.py:773] Available KV cache memory: 67.54 GiB
(EngineCore pid=311) INFO 11-21 04:12:58 [kv_cache_utils.py:1148] GPU KV cache size: 491,840 tokens, Maximum concurrency for 4,096 tokens per request: 120.08x
(EngineCore pid=311) INFO 11-21 04:13:06 [model_runner.py:1164] Graph capturing finished in 7 secs, took 0.89 GiB
(EngineCore pid=311) INFO 11-21 04:13:07 [gpu_worker.py:1064] Free memory on device (139.16/139.8 GiB) on startup. Desired GPU memory utilization is (0.6, 83.88 GiB). Actual usage is 15.49 GiB for consumed memory (weights + non-torch), 0.84 GiB for peak activation, and 0.89 GiB for CUDAGraph memory. Replace gpu_memory_utilization config with `--kv-cache-memory=72360128102` (67.39 GiB) to fit into requested memory, or `--kv-cache-memory=131712421478` (122.67 GiB) to fully utilize gpu memory. Current kv cache memory in use is 67.54 GiB.
(APIServer pid=1) INFO:     Application startup complete.
"""
TWO_RANKS = """\
(Worker_TP0 pid=34322) INFO 05-06 20:59:59 [gpu_model_runner.py:4879] Model loading took 12.66 GiB memory and 31.657031 seconds
(Worker_TP1 pid=34323) INFO 05-06 20:59:59 [gpu_model_runner.py:4879] Model loading took 12.64 GiB memory and 31.557031 seconds
(Worker_TP0 pid=34322) INFO 05-06 21:01:00 [gpu_worker.py:456] Available KV cache memory: 20.01 GiB
(Worker_TP1 pid=34323) INFO 05-06 21:01:00 [gpu_worker.py:456] Available KV cache memory: 19.87 GiB
(EngineCore pid=34000) INFO 05-06 21:01:00 [kv_cache_utils.py:1316] GPU KV cache size: 162,784 tokens
"""
PINNED = """\
(EngineCore pid=311) INFO 11-21 04:12:40 [model_runner.py:429] Model loading took 14.97 GiB memory and 2.412563 seconds
(EngineCore pid=311) INFO 11-21 04:12:58 [gpu_worker.py:660] Initial free memory 139.16 GiB, reserved 67.53 GiB memory for KV Cache as specified by kv_cache_memory_bytes config and skipped memory profiling. This does not respect the gpu_memory_utilization config.
(EngineCore pid=311) INFO 11-21 04:12:58 [kv_cache_utils.py:1148] GPU KV cache size: 491,808 tokens, Maximum concurrency for 4,096 tokens per request: 120.07x
"""


def test_a_good_start_teaches_its_footprint() -> None:
    known = learn("m", "k", EIGHT_B, ready_seconds=91)

    assert known.weights == int(14.97 * GIB)
    assert known.kv_cache_tokens == 491_840
    assert known.kv_cache_bytes == int(67.535 * GIB)
    assert known.cuda_graphs == int(0.89 * GIB)
    assert known.ready_seconds == 91


def test_the_rank_with_least_room_decides() -> None:
    known = learn("m", "k", TWO_RANKS)

    assert known.weights == int(12.66 * GIB)
    assert known.kv_cache_bytes == int(19.865 * GIB)


def test_a_pinned_start_keeps_the_pin_it_was_given() -> None:
    first = learn("m", "k", EIGHT_B)

    again = learn("m", "k", PINNED, before=first)

    assert again.kv_cache_bytes == first.kv_cache_bytes
    assert again.kv_cache_tokens == 491_808
    assert again.cuda_graphs == first.cuda_graphs


def test_an_empty_log_teaches_nothing_and_forgets_nothing() -> None:
    first = learn("m", "k", EIGHT_B, ready_seconds=91)

    assert learn("m", "k", "", before=first) == first
    assert learn("m", "k", "") == Learned(model="m", key="k")


@settings(deadline=None)
@given(st.text(max_size=400))
def test_no_log_is_an_error(log: str) -> None:
    learn("m", "k", log)


def test_an_overrun_never_shrinks_on_a_quiet_hour() -> None:
    busy = overrun(None, 2 * GIB, GIB, 3 * GIB, 1.0)

    assert busy == 3 * GIB
    assert overrun(busy, 2 * GIB, GIB, -GIB, 10 * SETTLED) == busy


def test_an_idle_engine_is_planned_for_its_load() -> None:
    assert overrun(None, 3 * GIB, GIB, 10, SETTLED - 1) is None
    assert overrun(None, 3 * GIB, GIB, 10, SETTLED) == GIB
    assert overrun(None, 3 * GIB, GIB, 2 * GIB, SETTLED) == 2 * GIB
    # nobody knows what its load will take
    assert overrun(None, 3 * GIB, None, 10, 10 * SETTLED) is None


@settings(deadline=None)
@given(st.lists(st.integers(-(10**10), 10**11), max_size=30), st.integers(0, 5 * GIB), st.none() | st.integers(0, GIB))
def test_an_overrun_only_grows(readings: list[int], planned: int, expected: int | None) -> None:
    known: int | None = None
    for hour, seen in enumerate(readings):
        now = overrun(known, planned, expected, seen, hour * SETTLED)
        assert known is None or (now is not None and now >= known)
        assert (planned if now is None else now) > seen - STEP
        known = now


def test_at_another_share_the_cache_is_forgotten_and_the_weights_are_not() -> None:
    engine = Engine(max_num_seqs=8)
    at_70 = key("hf://a/b@c", engine, "vllm-0.33.0", 1, "NVIDIA-H200", "0.70")
    at_60 = key("hf://a/b@c", engine, "vllm-0.33.0", 1, "NVIDIA-H200", "0.60")
    other = key("hf://a/b@d", engine, "vllm-0.33.0", 1, "NVIDIA-H200", "0.60")
    known = (learn("m", at_70, EIGHT_B),)

    found = recall(known, "m", at_60)

    assert recall(known, "m", at_70) == known[0]
    assert found is not None
    assert (found.weights, found.kv_cache_bytes) == (known[0].weights, None)
    assert recall(known, "m", other) is None
    assert recall(known, "another", at_70) is None
