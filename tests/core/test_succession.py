"""SurgeIfRoom: the old engine serves until its successor does, in turn, and what cannot be is broken before it is made."""

from __future__ import annotations

from dataclasses import replace

from cotenant.core.snapshot import OnOutOfMemory, Placement, Remedy, RolloutStrategy
from tests.core.builders import Cluster, model, node, placement


def surging(share: str, replicas: int = 1, **fields: object) -> Placement:
    wish = replace(model("m", share), replicas=replicas, **fields)  # type: ignore[arg-type]
    return placement("p", wish, strategy=RolloutStrategy.SURGE_IF_ROOM)


def test_a_rollout_under_way_is_not_said_to_be_done() -> None:
    cluster = Cluster([node("n1")]).apply(surging("30%")).settle()

    cluster.apply(surging("32%")).step()
    cluster.step()

    assert cluster.condition("p", "Ready")["status"] == "False"
    assert "its spec has changed; serves as it is until" in cluster.condition("p", "Reconciling")["message"]
    cluster.run(3)
    assert cluster.condition("p", "Ready")["status"] == "True"


def test_a_smaller_share_on_a_full_gpu_is_rolled_out() -> None:
    cluster = Cluster([node("n1")]).apply(surging("60%"), placement("q", model("o", "30%"))).settle()

    cluster.apply(surging("25%")).run()

    assert cluster.flags() == {"p-m-0": "0.25", "q-o-0": "0.30"}


def test_with_room_nobody_goes_before_the_next_serves() -> None:
    cluster = Cluster([node("n1", gpus=2)]).apply(surging("20%", replicas=3)).settle()

    cluster.apply(surging("22%", replicas=3))
    for _ in range(20):
        cluster.step()
        assert sum(pod.ready for pod in cluster.pods.values()) >= 3
        cluster.ready()

    assert set(cluster.flags().values()) == {"0.22"}
    assert not [line for line in cluster.log if line.endswith("SpecChanged")]


def test_a_rollout_that_fails_stops() -> None:
    cluster = Cluster([node("n1", gpus=3)]).apply(surging("60%", replicas=3)).settle()

    cluster.apply(surging("61%", replicas=3)).run(seconds=20, flawed="0.61")

    assert {line for line in cluster.log[3:] if line[0] == "+"} == {"+p-m-0"}
    assert sorted(cluster.flags().values()) == ["0.60", "0.60"]
    assert cluster.condition("p", "Stalled")["status"] == "True"


def test_a_rollout_that_fails_beside_the_old_engines_takes_none_of_them_down() -> None:
    cluster = Cluster([node("n1", gpus=2)]).apply(surging("30%", replicas=2)).settle()
    old = {pod.uid for pod in cluster.pods.values()}

    cluster.apply(surging("31%", replicas=2)).run(seconds=20, flawed="0.31")

    assert {pod.uid for pod in cluster.pods.values() if pod.ready} == old
    assert "its successor failed" in cluster.condition("p", "Stalled")["message"]
    assert "m-0 has to be ready first" in cluster.condition("p", "Stalled")["message"]


def test_a_successor_that_is_to_go_elsewhere_does() -> None:
    allowed = OnOutOfMemory(allow=(Remedy.MOVE,))

    def wish(share: str, *names: str) -> Placement:
        return replace(surging(share, on_out_of_memory=allowed), names=names)

    other = placement("o", model("x", "60%"), names=("n2",))
    cluster = Cluster([node("n1"), node("n2")]).apply(wish("30%", "n1"), other).settle()
    cluster.apply(wish("32%", "n1")).step()
    cluster.die("p-m-0-b", 0, "EngineCore encountered a fatal error")
    for _ in range(3):
        cluster.step()
        cluster.now += 12
    cluster.placements["p"] = replace(cluster.placements["p"], names=())

    cluster.die("p-m-0-b", 0, "EngineCore encountered a fatal error")
    for _ in range(4):
        cluster.step()
        cluster.now += 30

    moved = cluster.pods["default", "p-m-0-b"].allocation
    assert moved is not None
    assert moved.gpus == ("n2-g0",)
