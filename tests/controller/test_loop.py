"""The loop on the real API server, with decisions of our own: when it decides, and that nothing ends it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from cotenant.controller import records
from cotenant.controller.loop import Bell, Loop
from cotenant.controller.sources import PODS
from cotenant.core.decision import Create, Decision
from cotenant.core.snapshot import Snapshot
from cotenant.kube import Kube
from cotenant.settings import Settings
from cotenant.verbs import Manifests
from tests.cluster.control_plane import ControlPlane
from tests.controller.builders import Body, engine_pod


@asynccontextmanager
async def running(
    kube: Kube, namespace: str, reconcile: Callable[[Snapshot], Decision], resync: float = 600
) -> AsyncIterator[Loop]:
    """A loop over one namespace."""
    settings = Settings(
        namespace=namespace, watch_namespaces=(namespace,), resync=resync, debounce=0.05, hub_offline=True
    )
    loop = Loop(kube, settings, reconcile)
    task = asyncio.create_task(loop.run())
    try:
        yield loop
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(true: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        await asyncio.sleep(0.02)


def wish(namespace: str, name: str = "sparrow-mistral-0") -> Create:
    """One pod."""
    pod = engine_pod(name, namespace)
    metadata = {k: pod["metadata"][k] for k in ("name", "namespace", "labels", "annotations")}
    spec = {"containers": [{"name": "engine", "image": "localhost/x"}], "terminationGracePeriodSeconds": 0}
    return Create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}, "Starting")


async def test_nothing_is_decided_before_everything_was_seen_once(kube: Kube, namespace: str) -> None:
    await kube.create(wish(namespace).manifest)
    seen: list[Snapshot] = []

    def decide(snapshot: Snapshot) -> Decision:
        seen.append(snapshot)
        return Decision()

    async with running(kube, namespace, decide) as loop:
        assert loop.unready()
        await until(lambda: bool(seen) and not loop.unready())

    assert [pod.name for pod in seen[0].pods] == ["sparrow-mistral-0"]


async def test_a_pass_that_fails_is_tried_again(kube: Kube, namespace: str) -> None:
    passes = 0

    def decide(snapshot: Snapshot) -> Decision:
        nonlocal passes
        passes += 1
        if passes <= 2:
            raise ZeroDivisionError("a bug")
        return Decision() if snapshot.pods else Decision(creates=(wish(namespace),))

    async with running(kube, namespace, decide) as loop:
        await until(lambda: bool(loop.cache.snapshot(0).pods))

    assert len(await kube.list("v1", "Pod", namespace)) == 1


async def test_what_is_deleted_behind_our_back_is_made_again_and_never_twice(kube: Kube, namespace: str) -> None:
    def decide(snapshot: Snapshot) -> Decision:
        return Decision() if snapshot.pods else Decision(creates=(wish(namespace),))

    async with running(kube, namespace, decide) as loop:
        await until(lambda: bool(loop.cache.snapshot(0).pods))
        first = loop.cache.snapshot(0).pods[0].uid
        await asyncio.sleep(1.5)  # the watches have begun
        await kube.delete("v1", "Pod", "sparrow-mistral-0", namespace, grace_seconds=0)
        await until(lambda: any(pod.uid != first for pod in loop.cache.snapshot(0).pods))


async def test_it_wakes_when_a_decision_asks_for_it(kube: Kube, namespace: str) -> None:
    times: list[float] = []

    def decide(snapshot: Snapshot) -> Decision:
        times.append(snapshot.now)
        return Decision(wake_at=snapshot.now + 1.0) if len(times) == 1 else Decision()

    async with running(kube, namespace, decide):
        await until(lambda: len(times) >= 2)

    assert 0.9 < times[1] - times[0] < 2.5


async def test_rings_within_the_debounce_are_one_pass() -> None:
    bell = Bell()
    for _ in range(100):
        bell.ring(0.1)
    begun = time.monotonic()
    await bell.wait()
    assert time.monotonic() - begun >= 0.09

    late = asyncio.create_task(bell.wait())
    await asyncio.sleep(0.2)
    assert not late.done()
    late.cancel()


async def test_an_earlier_ring_brings_a_later_one_forward() -> None:
    bell = Bell()
    bell.ring(30)
    waiting = asyncio.create_task(bell.wait())
    await asyncio.sleep(0.05)

    bell.ring(0.0)

    await asyncio.wait_for(waiting, 1)


async def test_an_object_that_cannot_be_read_hides_no_other(kube: Kube, namespace: str) -> None:
    for name in ("sparrow-mistral-0", "sparrow-mistral-1"):
        await kube.create(wish(namespace, name).manifest)

    def read(body: Body) -> object:
        if body["metadata"]["name"] == "sparrow-mistral-0":
            raise KeyError("a field that was always there")
        return records.pod(body)

    async with running(kube, namespace, lambda _: Decision()) as loop:
        loop.cache.shelves[PODS].source = replace(loop.cache.shelves[PODS].source, read=read)
        await until(lambda: not loop.unready())
        assert [pod.name for pod in loop.cache.snapshot(0).pods] == ["sparrow-mistral-1"]


class Faulty(Kube):
    """Lists pods, but for one time in between."""

    lists = 0

    async def pages(self, api_version: str, kind: str, *where: Any) -> AsyncIterator[tuple[Manifests, str]]:
        self.lists += kind == "Pod"
        if kind == "Pod" and self.lists == 2:
            raise ZeroDivisionError("a bug")
        async for page in super().pages(api_version, kind, *where):
            yield page


async def test_everything_is_listed_now_and_then_whatever_went_wrong_once(
    with_crds: ControlPlane, namespace: str
) -> None:
    async with (
        await Faulty.connect(str(with_crds.kubeconfig)) as kube,
        running(kube, namespace, lambda _: Decision(), resync=5),
    ):
        await until(lambda: kube.lists > 2)
