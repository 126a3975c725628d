"""What people do to pods by hand is seen, counted as what it is, and put right; nothing is lost by it."""

from __future__ import annotations

from dataclasses import replace

from tests.core.builders import Cluster, model, node, placement


def test_a_label_changed_by_hand_is_drift() -> None:
    cluster = Cluster([node("n1")]).apply(placement("p", model("m", "30%"))).settle()
    cluster.pods["default", "p-m-0"] = replace(cluster.pods["default", "p-m-0"], model="canary")

    cluster.settle()

    assert cluster.log == ["+p-m-0", "-p-m-0 Edited", "+p-m-0"]


def test_a_dead_pod_whose_placement_label_was_changed_by_hand_is_replaced() -> None:
    cluster = Cluster([node("n1")]).apply(placement("p", model("m", "30%"))).settle()
    cluster.pods["default", "p-m-0"] = replace(cluster.pods["default", "p-m-0"], placement="old")
    cluster.die("p-m-0", 0, "EngineCore encountered a fatal error")

    cluster.run()

    assert cluster.phases("p") == ["Ready"]


def test_an_engine_whose_allocation_was_stripped_keeps_its_place_and_is_replaced() -> None:
    cluster = Cluster([node("n1", gpus=2)]).apply(placement("p", model("m", "60%", replicas=3))).settle()
    was = {pod.name: pod.allocation for pod in cluster.pods.values()}

    cluster.strip_allocation("p-m-0")
    cluster.run(5)

    assert "-p-m-0 Edited" in cluster.log
    assert {pod.name: pod.allocation for pod in cluster.pods.values()} == was
    assert cluster.phases("p") == ["Ready", "Ready", "Unplaced"]


def test_an_engine_whose_allocation_was_stripped_is_said_to_serve() -> None:
    cluster = Cluster([node("n1")]).apply(placement("p", model("m", "60%"))).settle()
    machine, report = cluster.nodes[0]
    cluster.nodes[0] = (replace(machine, cordoned=True), report)

    cluster.strip_allocation("p-m-0")
    cluster.run(3)

    assert cluster.phases("p") == ["Ready"]
    assert "its annotations are missing or unreadable" in cluster.condition("p", "Stalled")["message"]


def test_a_hash_nobody_can_read_does_not_hide_a_changed_share() -> None:
    cluster = Cluster([node("n1", gpus=2)]).apply(placement("p", model("m", "60%"))).settle()
    cluster.pods["default", "p-m-0"] = replace(cluster.pods["default", "p-m-0"], hash="v0-0123456789abcdef")

    cluster.apply(placement("p", model("m", "60%"))).settle()
    assert cluster.log == ["+p-m-0"], "an upgrade restarts nobody"
    cluster.apply(placement("p", model("m", "25%"))).settle()

    assert cluster.flags() == {"p-m-0": "0.25"}


def test_a_placement_that_is_being_deleted_still_uses_its_gpus() -> None:
    cluster = Cluster([node("n1", gpus=2)]).apply(placement("p", model("m", "60%"))).settle()

    cluster.placements["p"] = replace(cluster.placements["p"], deleting=True)
    cluster.apply(placement("q", model("o", "60%"))).settle()

    assert cluster.phases("q") == ["Ready"]
    assert len({pod.allocation.gpus for pod in cluster.pods.values() if pod.allocation}) == 2
