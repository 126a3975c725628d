"""The cache: whatever the order of news, the newest counts; what did not change is the same object."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cotenant.controller.cache import Cache
from cotenant.controller.sources import NODES, PLACEMENTS, PODS, sources
from cotenant.core.snapshot import Policy
from tests.controller.builders import Body, ended, engine_pod, node, placement


@pytest.fixture
def cache() -> Cache:
    return fresh()


def fresh() -> Cache:
    return Cache(sources(Policy()), Policy())


# --------------------------------------------------------------------------------------------------- any order of news
News = tuple[bool, Body]


@st.composite
def histories(draw: st.DrawFn) -> list[News]:
    """What happened to a few pods, in order: made, changed, deleted, made anew; versions grow over all of them."""
    version, alive, out = 0, {}, []
    for _ in range(draw(st.integers(1, 14))):
        version += draw(st.integers(1, 3))
        name = draw(st.sampled_from(["a-0", "b-0", "c-0"]))
        uid = alive.get(name)
        if uid is None:
            alive[name] = f"{name}-{version}"
            out.append((False, engine_pod(name, uid=alive[name], version=version)))
        elif draw(st.booleans()):
            del alive[name]
            out.append((True, engine_pod(name, uid=uid, version=version)))
        else:
            phase = draw(st.sampled_from(["Pending", "Running", "Failed"]))
            status = ended(1) if phase == "Failed" else {}
            out.append((False, engine_pod(name, uid=uid, version=version, phase=phase, **status)))
    return out


def tell(cache: Cache, news: list[News]) -> None:
    for deleted, body in news:
        (cache.remove if deleted else cache.put)(PODS, copy.deepcopy(body))


@settings(max_examples=400, deadline=None)
@given(histories(), st.data())
def test_any_order_and_repetition_of_news_leads_to_the_same_snapshot(history: list[News], data: st.DataObject) -> None:
    in_order, mixed = fresh(), fresh()
    tell(in_order, history)

    repeated = history + data.draw(st.lists(st.sampled_from(history), max_size=6))
    tell(mixed, data.draw(st.permutations(repeated)))

    assert mixed.snapshot(0) == in_order.snapshot(0)


@settings(max_examples=200, deadline=None)
@given(histories(), st.data())
def test_a_list_that_overtakes_the_news_changes_nothing_in_the_end(history: list[News], data: st.DataObject) -> None:
    in_order, listed = fresh(), fresh()
    tell(in_order, history)

    cut = data.draw(st.integers(0, len(history)))
    at = int(history[cut - 1][1]["metadata"]["resourceVersion"]) if cut else 0
    living: dict[str, Body] = {}
    for deleted, body in history[:cut]:
        if deleted:
            living.pop(body["metadata"]["name"])
        else:
            living[body["metadata"]["name"]] = body
    tell(listed, history[: data.draw(st.integers(0, len(history)))])
    for body in living.values():
        listed.put(PODS, copy.deepcopy(body))
    listed.settle(PODS, [("default", name) for name in living], str(at))
    tell(listed, data.draw(st.permutations(history)))

    assert listed.snapshot(0) == in_order.snapshot(0)


# ------------------------------------------------------------------------------------------------------------ own words
def test_what_we_know_to_be_gone_does_not_come_back_with_late_news(cache: Cache) -> None:
    cache.put(PODS, engine_pod(version=5))

    assert cache.forget(PODS, ("default", "sparrow-mistral-0"), "u1")
    assert not cache.put(PODS, engine_pod(version=9, phase="Running"))
    assert cache.snapshot(0).pods == ()
    assert cache.put(PODS, engine_pod(uid="u2", version=10))


def test_forgetting_a_pod_leaves_its_successor_of_the_same_name(cache: Cache) -> None:
    cache.put(PODS, engine_pod(uid="u2", version=10))

    assert not cache.forget(PODS, ("default", "sparrow-mistral-0"), "u1")
    assert [pod.uid for pod in cache.snapshot(0).pods] == ["u2"]


def test_a_node_whose_label_is_taken_away_and_given_back_is_known_again(cache: Cache) -> None:
    cache.put(NODES, node(version=1))
    cache.remove(NODES, node(version=2))

    assert cache.snapshot(0).nodes == ()
    assert cache.put(NODES, node(version=3))


def test_a_list_drops_what_was_deleted_unheard_and_keeps_what_is_newer(cache: Cache) -> None:
    cache.put(PODS, engine_pod("old-0", uid="a", version=3))
    cache.put(PODS, engine_pod("new-0", uid="b", version=9))

    assert cache.settle(PODS, [], "5")
    assert [pod.name for pod in cache.snapshot(0).pods] == ["new-0"]


# ------------------------------------------------------------------------------------------------------------- sameness
def test_news_that_changes_no_record_rings_no_bell(cache: Cache) -> None:
    cache.put(NODES, node(version=1))
    heartbeat = node(version=2)
    heartbeat["status"]["conditions"][0]["lastHeartbeatTime"] = "2026-01-01T00:05:00Z"

    assert not cache.put(NODES, heartbeat)
    assert not cache.put(NODES, node(version=1, ready=False)), "older than what is known"


def test_one_change_leaves_all_other_records_and_kinds_the_same_objects(cache: Cache) -> None:
    for index in range(100):
        cache.put(PODS, engine_pod(f"m-{index}", uid=f"u{index}", version=index + 1))
    cache.put(NODES, node(version=200))
    before = cache.snapshot(0)

    cache.put(PODS, engine_pod("m-7", uid="u7", version=300, phase="Running"))

    after = cache.snapshot(1)
    assert after.nodes is before.nodes
    assert sum(a is b for a, b in zip(before.pods, after.pods, strict=True)) == 99


def test_a_placement_whose_status_changed_keeps_its_models(cache: Cache) -> None:
    cache.put(PLACEMENTS, placement(version=1))
    models = cache.snapshot(0).placements[0].models

    cache.put(PLACEMENTS, placement(version=2, status={"observedGeneration": 1, "conditions": [], "models": []}))

    changed = cache.snapshot(0).placements[0]
    assert changed.status.observed_generation == 1
    assert changed.models is models


def test_a_spec_that_cannot_be_read_keeps_its_placement(cache: Cache) -> None:
    cache.put(PLACEMENTS, placement(share="seventy"))

    (kept,) = cache.snapshot(0).placements
    assert kept.invalid is not None
    assert "share" in kept.invalid.path


# ------------------------------------------------------------------------------------------------------------- evidence
def test_a_log_that_was_read_stays_with_its_pod_through_later_news(cache: Cache) -> None:
    cache.put(PODS, engine_pod(version=1, phase="Failed", **ended(1)))
    assert cache.snapshot(0).pods[0].ended.log is None  # type: ignore[union-attr]

    assert cache.keep_log("u1", ("default", "sparrow-mistral-0"), "torch.OutOfMemoryError")
    cache.put(PODS, engine_pod(version=2, phase="Failed", **ended(1, message="later")))

    last = cache.snapshot(0).pods[0].ended
    assert last is not None
    assert (last.log, last.message) == ("torch.OutOfMemoryError", "later")


def test_a_log_of_a_pod_that_is_no_more_is_not_kept(cache: Cache) -> None:
    cache.put(PODS, engine_pod(version=1))
    cache.forget(PODS, ("default", "sparrow-mistral-0"), "u1")

    assert not cache.keep_log("u1", ("default", "sparrow-mistral-0"), "text")


def test_a_log_is_not_kept_beyond_a_successor_of_the_same_name(cache: Cache) -> None:
    cache.put(PODS, engine_pod(uid="u1", version=1, phase="Failed", **ended(1)))
    cache.keep_log("u1", ("default", "sparrow-mistral-0"), "a traceback")

    cache.put(PODS, engine_pod(uid="u2", version=5))  # that the one before it was deleted was never heard

    assert cache._logs == {}


def test_a_start_log_is_dropped_once_a_status_holds_what_it_taught(cache: Cache) -> None:
    cache.put(PODS, engine_pod(version=1, phase="Running", ready=True))
    cache.keep_start_log("u1", ("default", "sparrow-mistral-0"), "GPU KV cache size: 1")

    cache.learned_from(cache.snapshot(0).pods)

    assert cache.snapshot(0).pods[0].start_log == ""


def test_a_pod_that_served_once_has_served_though_it_is_not_ready_now(cache: Cache) -> None:
    cache.put(PODS, engine_pod(version=1, phase="Running", ready=True))
    late: dict[str, Any] = engine_pod(version=2, phase="Failed", **ended(1))
    late["status"]["conditions"] = []

    cache.put(PODS, late)

    assert cache.snapshot(0).pods[0].was_ready
