"""SurgeIfRoom: the old engine serves until its successor does, in turn, and what cannot be is broken before it is made."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cotenant.core.share import GIB
from cotenant.core.snapshot import OnOutOfMemory, Placement, Remedy, RolloutStrategy, Spread
from tests.core.builders import POLICY, Cluster, model, node, placement

STRATEGIES = (RolloutStrategy.RECREATE, RolloutStrategy.SURGE_IF_ROOM)


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


def test_a_successor_that_serves_is_no_prey_of_a_lower_priority() -> None:
    cluster = Cluster([node("n1")]).apply(surging("40%", priority=10)).settle()
    cluster.apply(surging("42%", priority=10)).step()
    cluster.ready()

    cluster.apply(placement("q", model("o", "50%"), created=2.0)).step()

    assert any(pod.ready and pod.placement == "p" for pod in cluster.pods.values())
    cluster.run()
    assert cluster.phases("p") == ["Ready"]
    assert cluster.phases("q") == ["Ready"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_engine_on_a_closed_node_takes_nobodys_place(strategy: RolloutStrategy) -> None:
    def wish(share: str) -> Placement:
        return placement("p", model("m", share, priority=10), strategy=strategy)

    cluster = Cluster([node("n1")]).apply(wish("60%")).settle()
    cluster.nodes.append(node("n2"))
    cluster.apply(placement("q", model("o", "60%"))).settle()
    cluster.nodes[0] = (replace(cluster.nodes[0][0], cordoned=True), cluster.nodes[0][1])

    cluster.apply(wish("62%")).run(6)

    assert cluster.flags() == {"p-m-0": "0.60", "q-o-0": "0.60"}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_nobody_is_sent_into_room_that_an_old_engine_keeps(strategy: RolloutStrategy) -> None:
    def wish(share: str) -> Placement:
        apart = model("m", share, replicas=2, spread=Spread.GPU)
        return placement("p", apart, names=("n1",), strategy=strategy)

    cluster = Cluster([node("n1"), node("n2")]).apply(wish("60%")).settle()
    cluster.apply(wish("35%")).run(5)

    cluster.apply(placement("q", model("o", "45%"))).run(20)

    assert cluster.phases("q") == ["Ready"]


@pytest.mark.parametrize("asked", [{"cpu": 30_000}, {"memory": 60 * GIB}])
def test_a_successor_needs_its_nodes_cpu_and_memory_beside_the_old_engine(asked: dict[str, int]) -> None:
    cluster = Cluster([node("n1", cpu=40_000)])
    cluster.nodes[0] = (replace(cluster.nodes[0][0], memory=100 * GIB), cluster.nodes[0][1])
    cluster.apply(surging("30%", **asked)).settle()

    cluster.apply(surging("32%", **asked)).run(5)

    assert cluster.log == ["+p-m-0", "-p-m-0 SpecChanged", "+p-m-0"]


def test_a_successor_is_one_tenant_more() -> None:
    cluster = Cluster([node("n1")], policy=replace(POLICY, max_tenants_per_gpu=1)).apply(surging("30%")).settle()

    cluster.apply(surging("32%")).run(5)

    assert cluster.log == ["+p-m-0", "-p-m-0 SpecChanged", "+p-m-0"]


def test_spread_holds_while_successors_take_over() -> None:
    cluster = Cluster([node("n1"), node("n2")]).apply(surging("30%", spread=Spread.NODE)).settle()

    cluster.apply(surging("32%", replicas=2, spread=Spread.NODE))
    for _ in range(6):
        cluster.step()
        cluster.ready()
        nodes = {pod.name: pod.allocation.node for pod in cluster.pods.values() if pod.allocation}
        first, second = ({n for name, n in nodes.items() if f"-m-{number}" in name} for number in (0, 1))
        assert not first & second

    assert set(cluster.flags().values()) == {"0.32"}


def test_a_surge_that_is_called_off_keeps_the_engine_that_is_right() -> None:
    cluster = Cluster([node("n1")]).apply(surging("30%")).settle()
    cluster.apply(surging("32%")).step()
    cluster.ready()

    cluster.apply(replace(surging("32%"), strategy=RolloutStrategy.RECREATE)).run(5)

    assert cluster.flags() == {"p-m-0-b": "0.32"}
    assert "+p-m-0" not in cluster.log[1:]


def test_a_successor_that_is_refused_is_told() -> None:
    cluster = Cluster([node("n1")]).apply(surging("30%")).settle()

    cluster.apply(surging("32%"))
    for _ in range(5):
        cluster.step((("default", "p-m-0-b", "exceeded quota: pods"),))
        cluster.now += 60

    stalled = cluster.condition("p", "Stalled")
    assert stalled["reason"] == "CreateRefused"
    assert stalled["message"].endswith("which waits: exceeded quota: pods")
