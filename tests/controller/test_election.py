"""Leadership: one at a time, handed over at once when given back, taken when it runs out, given up when it cannot be kept."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cotenant.controller.election import Election, Terms
from cotenant.core.snapshot import Manifest
from cotenant.kube import Kube
from tests.cluster.control_plane import ControlPlane


def candidate(kube: Kube, namespace: str, name: str, lost: Callable[[], None] = lambda: None) -> Election:
    return Election(kube, Terms(namespace, "lease", name, duration=3.0), lost)


async def test_one_leads_and_the_other_waits_until_the_lease_is_given_back(kube: Kube, namespace: str) -> None:
    first, second = candidate(kube, namespace, "a"), candidate(kube, namespace, "b")
    await first.acquire()
    waiting = asyncio.create_task(second.acquire())

    await asyncio.sleep(5)
    assert not waiting.done(), "a renewed lease does not run out"

    given = time.monotonic()
    await first.release()
    await asyncio.wait_for(waiting, 5)
    assert time.monotonic() - given < 2.5
    lease = await kube.get("coordination.k8s.io/v1", "Lease", "lease", namespace)
    assert (lease["spec"]["holderIdentity"], lease["spec"]["leaseTransitions"]) == ("b", 1)
    await second.release()


async def test_the_lease_of_one_that_died_is_taken_after_it_ran_out(kube: Kube, namespace: str) -> None:
    dead = candidate(kube, namespace, "a")
    assert await dead._attempt()
    heir = candidate(kube, namespace, "b")

    begun = time.monotonic()
    await asyncio.wait_for(heir.acquire(), 15)

    assert time.monotonic() - begun >= 3.0
    await heir.release()


async def test_of_many_who_try_at_once_exactly_one_leads(kube: Kube, namespace: str) -> None:
    rivals = [candidate(kube, namespace, f"r{n}") for n in range(8)]

    won = await asyncio.gather(*(rival._attempt() for rival in rivals))

    assert won.count(True) == 1


async def test_who_lost_the_lease_to_another_stops(kube: Kube, namespace: str) -> None:
    lost = asyncio.Event()
    leader = candidate(kube, namespace, "a", lost.set)
    await leader.acquire()

    lease = await kube.get("coordination.k8s.io/v1", "Lease", "lease", namespace)
    lease["spec"]["holderIdentity"] = "usurper"
    await kube.apply(
        {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": "lease", "namespace": namespace},
            "spec": {"holderIdentity": "usurper", "leaseDurationSeconds": 60},
        },
        "usurper",
    )

    await asyncio.wait_for(lost.wait(), 10)
    assert not leader.is_leader


class Broken(Kube):
    """Comes to nothing in a way that nobody thought of, once it has worked."""

    works = True

    async def get(self, api_version: str, kind: str, name: str, namespace: str | None = None) -> Manifest:
        if not self.works:
            raise ZeroDivisionError("a bug")
        return await super().get(api_version, kind, name, namespace)


async def test_who_does_not_renew_stops_in_time_whatever_the_cause(with_crds: ControlPlane, namespace: str) -> None:
    async with await Broken.connect(str(with_crds.kubeconfig)) as kube:
        lost = asyncio.Event()
        leader = candidate(kube, namespace, "a", lost.set)
        await leader.acquire()
        kube.works = False

        await asyncio.wait_for(lost.wait(), 4)

        assert not leader.is_leader


@pytest.mark.timeout(120)
async def test_who_cannot_reach_the_api_server_stops_before_the_lease_runs_out(tmp_path: Path) -> None:
    with ControlPlane.start(tmp_path / "cluster") as cluster:
        async with await Kube.connect(str(cluster.kubeconfig)) as kube:
            lost = asyncio.Event()
            leader = candidate(kube, "default", "a", lost.set)
            await leader.acquire()
            await asyncio.to_thread(cluster.kill_apiserver)

            begun = time.monotonic()
            await asyncio.wait_for(lost.wait(), 10)

            assert time.monotonic() - begun < 3.0 + 0.6
            assert not leader.is_leader
