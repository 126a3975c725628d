"""A change of the spec goes through within its budget, stops where it fails, and goes back; who cannot stay moves all the same."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cotenant.core.share import GIB
from cotenant.core.snapshot import Placement, Spread, Stranger
from tests.core.builders import Cluster, model, node, placement
from tests.core.corpus import log


def three(share: str, name: str = "m") -> Placement:
    return placement("p", replace(model(name, share), replicas=3))


def utilizations(cluster: Cluster) -> dict[str, str]:
    return {pod.name: pod.allocation.utilization for pod in cluster.pods.values() if pod.allocation and pod.ready}


def fail_rollout(cluster: Cluster) -> None:
    cluster.apply(three("60%")).step()
    cluster.step()
    (starting,) = [pod.name for pod in cluster.pods.values() if not pod.ready]
    cluster.die(starting, exit_code=2, log=log("bad-flag"))
    cluster.settle()


def test_a_rollout_that_fails_stops_and_keeps_the_old_spec_of_the_rest_running() -> None:
    cluster = Cluster([node("n1", gpus=3)]).apply(three("50%")).settle()

    fail_rollout(cluster)

    assert sorted(utilizations(cluster).values()) == ["0.50", "0.50"]
    assert sorted(cluster.phases("p")) == ["Failed", "Ready", "Ready"]
    stalled = cluster.condition("p", "Stalled")
    assert stalled["status"] == "True"
    assert "BadFlag" in stalled["reason"] + stalled["message"]
    assert "has to be ready first, see why it is not" in stalled["message"]
    assert not cluster.condition("p", "Reconciling")


def test_the_old_spec_applied_again_takes_a_failed_rollout_back() -> None:
    cluster = Cluster([node("n1", gpus=3)]).apply(three("50%")).settle()
    before = {pod.name: pod.uid for pod in cluster.pods.values()}
    fail_rollout(cluster)

    cluster.apply(three("50%")).settle()

    assert set(utilizations(cluster).values()) == {"0.50"}
    assert cluster.condition("p", "Ready")["status"] == "True"
    assert sum(before[pod.name] == pod.uid for pod in cluster.pods.values()) == 2


def test_a_rollout_that_fails_does_not_go_on_by_moving_the_rest() -> None:
    tight = node("n1", gpus=3)
    cluster = Cluster([tight, node("n2", gpus=3)]).apply(three("50%")).settle()
    nodes = {pod.name: pod.allocation.node for pod in cluster.pods.values() if pod.allocation}
    strangers = tuple(
        replace(device, strangers=(Stranger(1, "train", 30 * GIB),)) for device in cluster.nodes[0][1].devices
    )
    cluster.nodes[0] = (tight[0], replace(tight[1], devices=strangers))
    cluster.settle()

    fail_rollout(cluster)

    assert set(nodes.values()) == {"n1"}
    assert sorted(utilizations(cluster).values()) == ["0.50", "0.50"]


def sicken(cluster: Cluster, index: int) -> None:
    machine, report = cluster.nodes[index]
    devices = (replace(report.devices[0], health="Unhealthy/XID79"), *report.devices[1:])
    cluster.nodes[index] = (machine, replace(report, devices=devices))


def test_a_tenant_of_a_sick_gpu_moves_though_another_replica_of_its_model_is_nowhere() -> None:
    cluster = Cluster([node("n1", memory=140 * GIB), node("n2")]).apply(three("60%")).settle()
    assert sorted(cluster.phases("p")) == ["Ready", "Ready", "Unplaced"]

    sicken(cluster, 0)
    cluster.nodes.append(node("n3"))
    cluster.settle()

    assert sorted(pod.allocation.node for pod in cluster.pods.values() if pod.allocation and pod.ready) == ["n2", "n3"]


def test_who_finds_no_other_place_is_told_what_is_wrong_with_the_one_it_has() -> None:
    cluster = Cluster([node("n1"), node("n2", memory=24 * GIB)]).apply(placement("p", model("m", "40Gi"))).settle()

    sicken(cluster, 0)
    cluster.settle()

    said = cluster.condition("p", "Stalled")["message"]
    assert "GPU 0 of n1 is Unhealthy/XID79; no other place: needs 40Gi" in said


def test_a_changed_spec_waits_for_a_replica_that_has_no_place_and_says_so() -> None:
    cluster = Cluster([node("n1", gpus=2)]).apply(three("60%")).settle()
    assert sorted(cluster.phases("p")) == ["Ready", "Ready", "Unplaced"]

    cluster.apply(three("55%")).settle()

    assert set(utilizations(cluster).values()) == {"0.60"}
    stalled = cluster.condition("p", "Stalled")
    assert "serves on as it is: m-" in stalled["message"]


def test_a_replica_that_waits_for_the_room_of_one_to_be_replaced_does_not_keep_it_from_being_replaced() -> None:
    cluster = Cluster([node("n1")]).apply(placement("p", model("m", "60%"))).settle()

    cluster.apply(three("25%")).settle()

    assert utilizations(cluster) == {"p-m-0": "0.25", "p-m-1": "0.25", "p-m-2": "0.25"}
    assert cluster.log == ["+p-m-0", "+p-m-1", "-p-m-0 SpecChanged", "+p-m-0", "+p-m-2"]
    assert cluster.condition("p", "Ready")["status"] == "True"


def test_two_models_that_hold_each_others_room_are_replaced_one_after_the_other() -> None:
    def two(share: str, replicas: int) -> Placement:
        apart = {"replicas": replicas, "spread": Spread.GPU}
        return placement("p", *(replace(model(name, share), **apart) for name in "ab"))

    cluster = Cluster([node("n1", gpus=2)]).apply(two("70%", 1)).settle()

    cluster.apply(two("40%", 2)).settle()

    assert set(utilizations(cluster).values()) == {"0.40"}
    assert len(utilizations(cluster)) == 4
    assert cluster.log[2] == "-p-a-0 SpecChanged"
    assert cluster.condition("p", "Ready")["status"] == "True"


def test_memory_that_is_only_late_in_coming_back_takes_no_other_replica_down() -> None:
    cluster = Cluster([node("n1")]).apply(placement("p", replace(model("m", "40%"), replicas=2))).settle()
    cluster.lingering = 30 * GIB

    cluster.die("p-m-0", exit_code=0)
    cluster.apply(placement("p", replace(model("m", "35%"), replicas=2)))
    for _ in range(5):
        cluster.step()
        cluster.now += 20

    assert "p-m-1" in utilizations(cluster)
    assert "is replaced once enough other replicas" in cluster.condition("p", "Reconciling")["message"]
    cluster.lingering = 0
    cluster.settle()
    assert set(utilizations(cluster).values()) == {"0.35"}


def test_a_rollout_that_was_given_up_does_not_count_as_room_for_others() -> None:
    cluster = Cluster([node("n1", gpus=3)]).apply(three("60%")).settle()
    cluster.apply(three("25%")).run(seconds=20, flawed="0.25")

    cluster.apply(placement("q", model("o", "50%"))).settle()

    assert cluster.phases("q") == ["Ready"]
    assert sorted(utilizations(cluster).values()) == ["0.50", "0.60", "0.60"]


def test_a_replica_that_fits_nowhere_does_not_keep_a_ring_tied() -> None:
    cluster = Cluster([node("n1")]).apply(placement("p", model("m", "60%"))).settle()

    cluster.apply(three("45%")).settle()

    assert utilizations(cluster) == {"p-m-0": "0.45", "p-m-1": "0.45"}
    assert cluster.phases("p") == ["Ready", "Ready", "Unplaced"]


def test_an_edit_takes_no_engine_down_that_may_not_come_back() -> None:
    cluster = Cluster([node("n1")]).apply(placement("p", model("m", "60%"))).settle()
    machine, report = cluster.nodes[0]
    cluster.nodes[0] = (replace(machine, cordoned=True), report)

    cluster.apply(placement("p", model("m", "50%"))).settle()

    assert utilizations(cluster) == {"p-m-0": "0.60"}
    said = cluster.condition("p", "Stalled")["message"]
    assert said == "m-0 Ready: its spec has changed; it serves on as it is: node n1 is cordoned"
    cluster.nodes[0] = (machine, report)
    cluster.settle()
    assert utilizations(cluster) == {"p-m-0": "0.50"}


def test_a_create_that_is_refused_keeps_nobody_else_from_starting() -> None:
    older, newer = placement("a", model("m", "30%")), placement("b", model("m", "30%"), created=2.0)
    cluster = Cluster([node("n1")]).apply(older, newer)

    for _ in range(5):
        cluster.step(refusals=(("default", "a-m-0", "exceeded quota: small"),))
        cluster.ready()

    assert cluster.phases("b") == ["Ready"]
    assert cluster.condition("a", "Stalled")["reason"] == "CreateRefused"
    assert cluster.said("a")[0]["message"] == "exceeded quota: small"


@pytest.mark.parametrize("by_hand", [False, True])
def test_who_is_displaced_counts_in_the_budget(by_hand: bool) -> None:
    def two(share: str) -> Placement:
        return placement("p", replace(model("m", share), replicas=2, spread=Spread.GPU))

    cluster = Cluster([node("n1", gpus=2)]).apply(two("60%")).settle()
    if by_hand:
        cluster.pods["default", "p-m-1"] = replace(cluster.pods["default", "p-m-1"], model="canary")
    else:
        cluster.apply(two("55%"))

    cluster.apply(placement("q", model("o", "60%", priority=10), created=2.0)).step()

    assert len(utilizations(cluster)) == 1


def test_one_that_waits_for_a_replica_that_is_refused_says_so() -> None:
    cluster = Cluster([node("n1", gpus=2)]).apply(placement("p", replace(model("m", "40%"), replicas=2))).settle()
    del cluster.pods["default", "p-m-1"]

    cluster.apply(placement("p", replace(model("m", "35%"), replicas=2)))
    for _ in range(3):
        cluster.step((("default", "p-m-1", "exceeded quota: small"),))

    assert utilizations(cluster) == {"p-m-0": "0.40"}
    assert "m-1 waits: exceeded quota: small" in cluster.condition("p", "Stalled")["message"]


def test_what_is_just_being_replaced_is_not_said_to_be_ready() -> None:
    cluster = Cluster([node("n1")]).apply(placement("p", model("m", "40%"))).settle()

    cluster.apply(placement("p", model("m", "45%"))).step()

    assert cluster.log[-1] == "-p-m-0 SpecChanged"
    assert cluster.phases("p") == ["Leaving"]
    assert cluster.condition("p", "Ready")["status"] == "False"
