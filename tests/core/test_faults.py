"""A death on its way through a pass: judged, taken down, cleaned up, remedied; nothing of it is lost between controllers."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from cotenant.core.drift import BLOCKED_GRACE
from cotenant.core.reconcile import reconcile
from cotenant.core.share import GIB, Percent, gib, parse_share
from cotenant.core.snapshot import Allocation, OnOutOfMemory, Remedy, RolloutStrategy
from cotenant.core.vllm import Engine
from tests.core.builders import POLICY, Cluster, model, node, placement
from tests.core.corpus import log

ALLOWED = OnOutOfMemory(Percent(6000), 4, tuple(Remedy))


SURGE = RolloutStrategy.SURGE_IF_ROOM


def _args(cluster: Cluster, name: str) -> tuple[str, ...]:
    return cluster.pods["default", name].args


def test_a_context_that_does_not_fit_is_shortened_to_what_vllm_said() -> None:
    chat = model("chat", "20%", engine=Engine(max_model_len=131072), on_out_of_memory=ALLOWED)
    cluster = Cluster([node("n1")]).apply(placement("p", chat))
    cluster.step()
    cluster.die("p-chat-0", 1, log("kv-too-small"))

    cluster.step()  # judged and taken down
    assert json.loads(cluster.placements["p"].status.raw)["models"][0]["lastFault"]["reason"] == "KVCacheTooSmall"
    cluster.step()  # cleaned up
    cluster.now += 20
    cluster.step()

    args = _args(cluster, "p-chat-0")
    assert "--max-model-len=49760" in args  # 98 % of the 50,784 tokens vLLM named, in whole blocks
    cluster.settle()
    cluster.now += 3600
    cluster.settle()
    assert cluster.phases("p") == ["Ready"]
    assert _args(cluster, "p-chat-0") == args, "a fault that healed restarts nobody"


def test_a_slow_start_gets_more_time_and_is_not_given_up_for_it() -> None:
    cluster = Cluster([node("n1")], policy=replace(POLICY, start_timeout=100)).apply(placement("p", model("slow")))
    cluster.step()
    cluster.now += 170
    cluster.settle(serve=False)
    cluster.now += 20
    cluster.settle(serve=False)
    begun = cluster.pods["default", "p-slow-0"].uid
    cluster.now += 170
    cluster.settle(serve=False)

    assert cluster.pods["default", "p-slow-0"].uid == begun


def test_a_lower_priority_yields_where_that_is_the_remedy() -> None:
    high = model("high", "40%", priority=5, on_out_of_memory=ALLOWED, engine=Engine(max_model_len=4096))
    low = model("low", "50%")
    cluster = Cluster([node("n1"), node("n2")]).apply(placement("p", high, low, names=("n1",)))
    cluster.settle()
    assert cluster.phases("p") == ["Ready", "Ready"]
    cluster.apply(placement("p", high, low))
    cluster.settle()

    cluster.die("p-high-0", 1, log("kv-too-small-auto"))
    for _ in range(12):
        cluster.now += 30
        cluster.step()
        cluster.ready()
    cluster.settle()

    assert cluster.phases("p") == ["Ready", "Ready"]


def test_a_bad_flag_is_failed_with_what_to_do_and_keeps_no_gpu() -> None:
    cluster = Cluster([node("n1")]).apply(placement("p", model("bad", "60%", priority=5), model("good", "60%")))
    cluster.step()
    cluster.die("p-bad-0", 2, log("bad-flag"))
    cluster.settle()

    assert sorted(cluster.phases("p")) == ["Failed", "Ready"]
    said = json.loads(cluster.placements["p"].status.raw)["models"][0]["replicas"][0]
    assert "--swap-space" in said["message"]
    assert "correct extraArgs" in said["message"]
    assert cluster.pods["default", "p-good-0"].allocation is not None
    assert cluster.pods["default", "p-good-0"].allocation.bytes == 48 * GIB


def test_host_memory_is_raised_in_the_request_and_never_made_a_limit() -> None:
    cluster = Cluster([node("n1")]).apply(placement("p", model("big")))
    cluster.settle()
    pod = cluster.pods["default", "p-big-0"]
    cluster.die("p-big-0", 137)
    ended = cluster.pods["default", "p-big-0"].ended
    assert ended is not None
    cluster.pods["default", "p-big-0"] = replace(
        pod, phase="Failed", ready=False, ended=replace(ended, reason="OOMKilled")
    )
    cluster.step()
    cluster.step()
    cluster.now += 20

    (create,) = reconcile(cluster.snapshot()).creates

    resources = create.manifest["spec"]["containers"][0]["resources"]
    assert resources["requests"]["memory"] == str(12 * GIB)
    assert "limits" not in resources


def test_a_placement_made_anew_waits_for_its_predecessors_pod_and_blocks_nobody() -> None:
    """A create that meets a 409 at every pass would hold its turn at the GPU for ever."""
    cluster = Cluster([node("n1")]).apply(placement("p", model("a", "30%")))
    cluster.settle()
    before = cluster.pods["default", "p-a-0"]
    cluster.placements["p"] = replace(
        cluster.placements["p"], uid="another", status=type(cluster.placements["p"].status)()
    )
    cluster.pods["default", "p-a-0"] = replace(before, deleting=True)
    cluster.apply(placement("q", model("b", "30%")))

    decision = cluster.step()

    assert [create.manifest["metadata"]["name"] for create in decision.creates] == []  # beside one that leaves
    said = json.loads(cluster.placements["p"].status.raw)["models"][0]["replicas"][0]
    assert said["reason"] == "NameInUse"
    del cluster.pods["default", "p-a-0"]
    cluster.settle()
    assert cluster.phases("p") == cluster.phases("q") == ["Ready"]


def test_a_pod_asked_to_leave_before_its_node_was_lost_does_not_hold_its_replica_there() -> None:
    cluster = Cluster([node("n1"), node("n2")]).apply(placement("p", model("a", "30%")))
    cluster.settle()
    before = cluster.pods["default", "p-a-0"]
    assert before.allocation is not None
    cluster.pods["default", "p-a-0"] = replace(before, deleting=True)
    lost = [replace(there, ready=False, not_ready_since=cluster.now) for there, _ in cluster.nodes]
    reports = [report for _, report in cluster.nodes]
    cluster.nodes = [
        (down if down.name == before.allocation.node else there, report)
        for down, (there, _), report in zip(lost, cluster.nodes, reports, strict=True)
    ]
    cluster.now += 120

    cluster.settle()

    assert cluster.phases("p") == ["Ready"]
    moved = cluster.pods["default", "p-a-0"].allocation
    assert moved is not None
    assert moved.node != before.allocation.node


def test_a_pod_that_cannot_start_is_looked_at_again_when_its_minute_is_over() -> None:
    cluster = Cluster([node("n1")]).apply(placement("p", model("m")))
    cluster.step()
    key = ("default", "p-m-0")
    hangs = replace(cluster.pods[key], blocked_reason="CreateContainerConfigError", blocked='secret "t" not found')
    cluster.pods[key] = hangs

    decision = cluster.step()

    assert decision.wake_at == hangs.created + BLOCKED_GRACE
    cluster.now = decision.wake_at
    assert [judged.verdict for judged in cluster.step().judged] == ["SecretMissing"]


def test_a_start_that_says_nothing_is_looked_at_again_when_its_time_is_over() -> None:
    cluster = Cluster([node("n1")]).apply(placement("p", model("m")))
    cluster.step()

    decision = cluster.step()

    assert decision.wake_at is not None
    cluster.now = decision.wake_at
    assert [judged.verdict for judged in cluster.step().judged] == ["SlowStart"]


def test_who_has_no_place_is_told_for_whom_one_is_kept() -> None:
    cluster = Cluster([node("n1")]).apply(placement("p", model("m", "60%"))).settle()
    cluster.die("p-m-0", log=log("engine-bug"))
    cluster.settle()

    cluster.apply(placement("q", model("m", "60%"), created=2.0)).settle()

    said = cluster.condition("q", "Placed")["message"]
    assert "needs 48Gi" in said
    assert "places are kept for p/m-0 on n1, which starts again at 1970-01-01T00:16:50Z" in said


def test_a_death_does_not_cost_a_replica_its_place() -> None:
    cluster = Cluster([node("n1")]).apply(placement("p", model("m", "60%"))).settle()
    cluster.apply(
        placement("a", model("m", "60%"), created=0.5), placement("q", model("m", "60%"), created=2.0)
    ).settle()

    cluster.die("p-m-0", log=log("engine-bug"))
    cluster.settle()
    cluster.now += 12
    cluster.settle()

    assert cluster.log == ["+p-m-0", "-p-m-0 EngineEnded", "+p-m-0"]
    assert [cluster.phases(name) for name in "paq"] == [["Ready"], ["Unplaced"], ["Unplaced"]]


def test_a_successor_that_dies_is_not_healed_by_the_one_that_still_serves() -> None:
    cluster = Cluster([node("n1")]).apply(placement("p", model("m", "40%"), strategy=SURGE)).settle()
    cluster.now += 3600
    cluster.apply(placement("p", model("m", "30%"), strategy=SURGE, generation=2))
    for _ in range(12):
        cluster.step()
        if ("default", "p-m-0-b") in cluster.pods:
            cluster.now += 40
            cluster.die("p-m-0-b", exit_code=1, log=log("bad-flag"))
            cluster.step()
            cluster.step()
        cluster.now += 400

    assert cluster.log == ["+p-m-0", "+p-m-0-b", "-p-m-0-b EngineEnded"]
    assert cluster.pods["default", "p-m-0"].ready
    assert "its successor failed: BadFlag" in cluster.condition("p", "Stalled")["message"]
    cluster.now += 7200
    cluster.settle()
    assert len(cluster.log) == 3
    cluster.apply(placement("p", model("m", "40%"), strategy=SURGE, generation=3)).settle()
    assert cluster.condition("p", "Ready")["status"] == "True"


def test_what_was_asked_for_on_a_large_gpu_is_not_waited_for_on_a_small_one() -> None:
    large, small = node("n1", memory=140 * GIB, product="NVIDIA-H200"), node("n2")
    cluster = Cluster([large]).apply(placement("p", model("m", "60%"))).settle()
    cluster.nodes = [(replace(large[0], cordoned=True), large[1]), small]
    cluster.die("p-m-0", log=log("runtime"))
    cluster.settle()
    cluster.now += 60
    cluster.settle()

    assert cluster.phases("p") == ["Ready"]
    assert cluster.pods["default", "p-m-0"].node == "n2"


def test_who_waits_for_long_keeps_no_gpu_from_others() -> None:
    cluster = Cluster([node("n1")]).apply(placement("p", model("m", "60%", on_out_of_memory=ALLOWED)))
    for _ in range(4):
        cluster.step()
        key = ("default", "p-m-0")
        cluster.pods[key] = replace(cluster.pods[key], blocked_reason="CreateContainerConfigError", blocked="no secret")
        cluster.now += 60
        cluster.settle(serve=False)
        cluster.now += 90
    cluster.apply(placement("a", model("m", "60%"), created=0.5)).settle()

    assert cluster.phases("a") == ["Ready"]


# ------------------------------------------------------------------------------------------------- of which wish it is
def test_the_death_of_an_engine_by_the_old_spec_does_not_fail_the_new_one() -> None:
    bad = model("m", "60%", engine=Engine(extra_args=("--bad",)))
    cluster = Cluster([node("n1")]).apply(placement("p", bad))
    cluster.step()
    cluster.die("p-m-0", 2, log("bad-flag"))
    _unread(cluster, "p-m-0")
    cluster.step()  # its log is being read
    cluster.apply(placement("p", model("m", "60%")))
    cluster.die("p-m-0", 2, log("bad-flag"))

    decision = cluster.step()

    (event,) = [event for event in decision.events if event.reason == "BadFlag"]
    assert "--swap-space" in event.message
    assert event.message.endswith("-> started anew: it ran by an older spec")
    assert [judged.verdict for judged in decision.judged] == ["BadFlag"]
    cluster.settle()
    assert cluster.phases("p") == ["Ready"]
    assert _faults(cluster) == []


def test_a_share_made_larger_while_a_death_was_looked_into_is_tried() -> None:
    cluster = Cluster([node("n1")]).apply(placement("p", model("m", "20%")))
    cluster.step()
    cluster.apply(placement("p", model("m", "60%")))
    cluster.die("p-m-0", 1, log("kv-too-small"))

    cluster.settle()

    assert cluster.phases("p") == ["Ready"]


def test_the_death_of_an_engine_by_another_version_of_the_operator_counts() -> None:
    cluster = Cluster([node("n1")]).apply(placement("p", model("m", "60%"))).settle()
    key = ("default", "p-m-0")
    cluster.pods[key] = replace(cluster.pods[key], hash="v0-0123456789abcdef")
    cluster.die("p-m-0", 0, log("engine-bug"))

    cluster.step()

    assert [fault["attempt"] for fault in _faults(cluster)] == [1]


def test_an_edit_of_another_model_undoes_no_remedy() -> None:
    grows = replace(ALLOWED, max_share=parse_share("80%"), allow=(Remedy.GROW_SHARE,))
    chat, other = model("chat", "30%", on_out_of_memory=grows), model("other", "10%")
    cluster = Cluster([node("n1", gpus=2)]).apply(placement("p", chat, other))
    cluster.step()
    cluster.ready("p-other-0")
    cluster.die("p-chat-0", 1, log("kv-too-small"))
    _pass(cluster)
    cluster.log.clear()

    cluster.apply(placement("p", replace(chat, priority=3), replace(other, replicas=2)))
    _pass(cluster)

    assert cluster.log == ["+p-other-1"]
    assert _given(cluster, "p-chat-0").utilization == "0.4262"


def test_a_model_that_was_given_up_is_tried_again_once_it_is_changed() -> None:
    bad = model("bad", engine=Engine(extra_args=("--bad",)))
    cluster = Cluster([node("n1")]).apply(placement("p", bad, model("good", "20%")))
    cluster.step()
    cluster.die("p-bad-0", 2, log("bad-flag"))
    cluster.settle()
    cluster.apply(placement("p", bad, model("good", "30%"))).settle()
    assert cluster.phases("p") == ["Failed", "Ready"]

    cluster.apply(placement("p", replace(bad, engine=Engine()), model("good", "30%"))).settle()

    assert cluster.phases("p") == ["Ready", "Ready"]


# ---------------------------------------------------------------------------------------------------- one at a time
def test_a_replica_label_changed_by_hand_does_not_make_its_death_a_new_one_every_pass() -> None:
    cluster = Cluster([node("n1")]).apply(placement("p", model("m", "30%"))).settle()
    key = ("default", "p-m-0")
    cluster.pods[key] = replace(cluster.pods[key], replica=3)
    cluster.die("p-m-0", 0, log("engine-bug"))

    writes = sum(len(cluster.step().statuses) for _ in range(20))

    assert "-p-m-0 EngineEnded" in cluster.log
    assert writes < 5
    assert [fault["index"] for fault in _faults(cluster)] == [0]


def test_two_deaths_at_once_count_as_two() -> None:
    cluster = _both_dead()

    judged = [entry.pod for _ in range(6) for entry in cluster.step().judged]

    assert judged == ["p-m-0", "p-m-0-b"]
    assert [len(fault["times"]) for fault in _faults(cluster)] == [2]


def test_two_deaths_count_as_two_whenever_the_controller_dies() -> None:
    cluster = _both_dead()

    for _ in range(4):  # it writes the status, and dies before it deletes
        for status in reconcile(cluster.snapshot()).statuses:
            cluster._write(status.name, status.status)
    for _ in range(4):
        cluster.step()

    assert [len(fault["times"]) for fault in _faults(cluster)] == [2]


def test_a_start_given_up_that_serves_after_all_is_left_alone() -> None:
    cluster = Cluster([node("n1")]).apply(placement("p", model("m", "60%")))
    cluster.step()
    key = ("default", "p-m-0")
    cluster.pods[key] = replace(cluster.pods[key], blocked="pull", blocked_reason="ImagePullBackOff")
    cluster.now += 70
    for status in reconcile(cluster.snapshot()).statuses:
        cluster._write(status.name, status.status)  # here the controller dies
    cluster.pods[key] = replace(cluster.pods[key], blocked="", blocked_reason="")
    cluster.ready()
    cluster.settle()
    assert cluster.log == ["+p-m-0"]

    cluster.die("p-m-0", 0, log("engine-bug"))  # this one is another
    cluster.settle()

    assert cluster.log == ["+p-m-0", "-p-m-0 EngineEnded"]
    assert [(fault["reason"], len(fault["times"])) for fault in _faults(cluster)] == [("EngineDied", 2)]


# ------------------------------------------------------------------------------------------------ on another machine
@pytest.mark.parametrize(
    ("share", "limit", "first", "then", "given"),
    [
        ("40Gi", "52Gi", 80, 140, "50.1Gi"),  # what was missing is as much on a larger GPU
        ("40Gi", "80Gi", 140, 80, "50.1Gi"),
        ("30%", "60%", 80, 140, "42Gi"),  # of which the spec has more
        ("30%", "40%", 140, 80, "32Gi"),  # of which maxShare has less
    ],
)
def test_a_share_that_grew_is_within_max_share_and_the_spec_on_every_gpu(
    share: str, limit: str, first: int, then: int, given: str
) -> None:
    allow = OnOutOfMemory(max_share=parse_share(limit), allow=(Remedy.GROW_SHARE,))
    cluster = Cluster([node("n1", memory=first * GIB, product=f"GPU-{first}")])
    cluster.apply(placement("p", model("m", share, on_out_of_memory=allow))).step()
    cluster.die("p-m-0", 1, log("kv-too-small"))
    _pass(cluster)
    assert _faults(cluster)[0]["remedies"] == ["GrowShare"]
    machine, report = cluster.nodes[0]
    cluster.nodes[0] = (replace(machine, cordoned=True), report)
    cluster.nodes.append(node("n2", memory=then * GIB, product=f"GPU-{then}"))

    del cluster.pods["default", "p-m-0"]  # drained
    _pass(cluster)

    there = _given(cluster, "p-m-0")
    assert (there.node, gib(there.bytes)) == ("n2", given)


# ------------------------------------------------------------------------------------------------------------- yielding
def test_who_died_beside_a_lower_priority_gets_its_room_until_it_serves() -> None:
    allow = OnOutOfMemory(allow=(Remedy.MOVE,))
    high = model("high", "40%", priority=10, on_out_of_memory=allow)
    cluster = Cluster([node("n1")]).apply(placement("low", model("l", "40%"))).settle()
    cluster.apply(placement("p", high, created=2.0)).step()
    for _ in range(2):
        cluster.now += 400
        cluster.die("p-high-0", 1, log("weights"))
        for _ in range(3):
            cluster.step()
            cluster.now += 60
    assert _faults(cluster)[0]["remedies"] == ["Restart", "Yield"]
    assert {"reserve", "waitForFree", "yield"} <= _faults(cluster)[0]["settings"].keys()

    _pass(cluster)
    assert "-low-l-0 Displaced" in cluster.log
    assert [cluster.phases(name) for name in ("p", "low")] == [["Ready"], ["Unplaced"]]
    assert _given(cluster, "p-high-0").overrun == POLICY.overrun

    cluster.now += 1200
    _pass(cluster)
    assert [cluster.phases(name) for name in ("p", "low")] == [["Ready"], ["Ready"]]


def test_where_nobody_is_left_to_yield_its_place_is_kept() -> None:
    allow = OnOutOfMemory(allow=(Remedy.MOVE,))
    high = model("high", "40%", priority=10, on_out_of_memory=allow)
    cluster = Cluster([node("n1")]).apply(placement("low", model("l", "40%"))).settle()
    cluster.apply(placement("p", high, created=2.0)).step()
    for _ in range(2):
        cluster.now += 400
        cluster.die("p-high-0", 1, log("weights"))
        cluster.step()
    cluster.apply(placement("low", model("l", "40%", priority=20)))
    _pass(cluster)

    assert [cluster.phases(name) for name in ("p", "low")] == [["Ready"], ["Ready"]]


def _both_dead() -> Cluster:
    """A replica and its successor, neither of which is told to be by an older spec."""
    cluster = Cluster([node("n1")]).apply(placement("p", model("m", "30%"), strategy=SURGE)).settle()
    cluster.apply(placement("p", model("m", "32%"), strategy=SURGE)).step()
    for name in ("p-m-0", "p-m-0-b"):
        key = ("default", name)
        cluster.pods[key] = replace(cluster.pods[key], hash="v0-0123456789abcdef")
        cluster.die(name, 0, log("engine-bug"))
    return cluster


def _unread(cluster: Cluster, name: str) -> None:
    pod = cluster.pods["default", name]
    assert pod.ended is not None
    cluster.pods["default", name] = replace(pod, ended=replace(pod.ended, log=None))


def _faults(cluster: Cluster) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(cluster.placements["p"].status.raw)["models"][0].get("faults", [])
    return found


def _given(cluster: Cluster, name: str) -> Allocation:
    given = cluster.pods["default", name].allocation
    assert given is not None
    return given


def _pass(cluster: Cluster, passes: int = 12) -> None:
    """A few minutes in which what starts comes up."""
    for _ in range(passes):
        cluster.step()
        cluster.ready()
        cluster.now += 30
