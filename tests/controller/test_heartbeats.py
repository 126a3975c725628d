"""Heartbeats: who is silent is told by our own clock, from what we saw of the Leases on the real API server."""

from __future__ import annotations

from dataclasses import dataclass, field

from cotenant.agent.publish import lease
from cotenant.controller.heartbeats import Heartbeats, silent_by_the_clock
from cotenant.core.names import AGENT_MANAGER
from cotenant.kube import Kube

SECONDS = 60
"""For which a Lease is good."""


@dataclass
class Nodes:
    """Agents with a clock of their own, and what is heard of them."""

    kube: Kube
    namespace: str
    rings: int = 0
    now: float = 1000.0
    """Our own clock."""
    heartbeats: Heartbeats = field(init=False)

    def __post_init__(self) -> None:
        self.start_anew()

    def start_anew(self) -> None:
        """Another controller comes."""
        self.heartbeats = Heartbeats(self.kube, self.namespace, self.ring)

    def ring(self) -> None:
        self.rings += 1

    async def beat(self, node: str, clock: float) -> None:
        """An agent renews its Lease by its own clock."""
        await self.kube.apply(lease(node, self.namespace, node, SECONDS, clock), AGENT_MANAGER)

    async def look(self, after: float = 15.0) -> frozenset[str]:
        """The controller looks, so many seconds later."""
        self.now += after
        await self.heartbeats.look(lambda: self.now)
        return self.heartbeats.silent


async def test_an_agent_whose_clock_is_wrong_is_not_silent(kube: Kube, namespace: str) -> None:
    nodes = Nodes(kube, namespace)
    for tick in range(8):
        await nodes.beat("behind", clock=100.0 + tick)
        await nodes.beat("ahead", clock=4e9 + tick)

        assert await nodes.look() == frozenset()
    assert nodes.rings == 0


async def test_an_agent_that_renews_no_more_is_silent_until_it_does(kube: Kube, namespace: str) -> None:
    nodes = Nodes(kube, namespace)
    for tick in range(5):
        await nodes.beat("lives", clock=float(tick))
        await nodes.beat("dies", clock=4e9)
        assert await nodes.look() == frozenset()
    await nodes.beat("lives", clock=6.0)

    assert await nodes.look() == {"dies"}
    assert nodes.rings == 1
    await nodes.beat("dies", clock=4e9 + 1)
    assert await nodes.look() == frozenset()
    assert nodes.rings == 2


async def test_a_controller_that_comes_closes_no_node_and_believes_a_dead_agent_for_one_lease(
    kube: Kube, namespace: str
) -> None:
    nodes = Nodes(kube, namespace)
    await nodes.beat("dead", clock=100.0)
    await nodes.look()
    assert [await nodes.look() for _ in range(5)][-1] == {"dead"}

    nodes.start_anew()

    assert await nodes.look() == frozenset()
    assert [await nodes.look() for _ in range(5)] == [*[frozenset()] * 4, {"dead"}]


async def test_nobody_is_silent_because_we_could_not_look(kube: Kube, namespace: str) -> None:
    nodes = Nodes(kube, namespace)
    await nodes.beat("dead", clock=100.0)
    for tick in range(7):
        await nodes.beat("lives", clock=float(tick))
        await nodes.look()
    assert nodes.heartbeats.silent == {"dead"}

    assert await nodes.look(after=300.0) == {"dead"}, "who was silent before stays so"


async def test_a_lease_that_is_gone_is_forgotten(kube: Kube, namespace: str) -> None:
    nodes = Nodes(kube, namespace)
    await nodes.beat("gone", clock=100.0)
    for _ in range(6):
        await nodes.look()
    await kube.delete("coordination.k8s.io/v1", "Lease", "gone", namespace)

    assert await nodes.look() == frozenset()
    assert nodes.heartbeats._beats == {}


def test_a_view_that_looks_once_believes_the_clocks() -> None:
    leases = [
        lease("old", "ns", "a", SECONDS, 100.0),
        lease("new", "ns", "b", SECONDS, 150.0),
        {"metadata": {"name": "x"}},
    ]

    assert silent_by_the_clock(leases, 170.0) == {"old"}
