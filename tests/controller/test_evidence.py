"""Evidence: each log is read once, a few times tried, and never after the pod it is of."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from cotenant.controller import evidence
from cotenant.controller.cache import Cache
from cotenant.controller.evidence import Evidence
from cotenant.controller.sources import PLACEMENTS, PODS, sources
from cotenant.core.snapshot import Policy
from cotenant.errors import ClusterError, NotFound
from tests.controller.builders import ended, engine_pod, placement


@dataclass
class Kubelet:
    """Gives logs, or the errors it was told to give first."""

    text: str = "torch.OutOfMemoryError"
    errors: list[ClusterError] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    async def log(self, namespace: str, name: str) -> str:
        self.asked.append(f"{namespace}/{name}")
        await asyncio.sleep(0)
        if self.errors:
            raise self.errors.pop(0)
        return self.text


@dataclass
class Reading:
    """Evidence being read into a cache."""

    kubelet: Kubelet = field(default_factory=Kubelet)
    cache: Cache = field(default_factory=lambda: Cache(sources(Policy()), Policy()))
    rings: int = 0

    def __post_init__(self) -> None:
        self.evidence = Evidence(self.cache, self.kubelet.log, self.ring)

    def ring(self) -> None:
        self.rings += 1

    def consider(self) -> None:
        snapshot = self.cache.snapshot(0)
        self.evidence.consider(snapshot.pods, snapshot.placements)

    async def until_read(self) -> None:
        self.consider()
        await asyncio.gather(*self.evidence._tasks.values())


async def test_an_ended_pods_log_is_read_once_and_rings() -> None:
    reading = Reading()
    reading.cache.put(PODS, engine_pod(phase="Failed", **ended(1)))

    reading.consider()
    await reading.until_read()
    await reading.until_read()

    assert reading.kubelet.asked == ["default/sparrow-mistral-0"]
    assert reading.rings == 1
    (pod,) = reading.cache.snapshot(0).pods
    assert pod.ended is not None
    assert pod.ended.log == "torch.OutOfMemoryError"


async def test_a_kubelet_that_fails_is_asked_again_and_in_the_end_the_log_is_empty() -> None:
    reading = Reading(Kubelet(errors=[ClusterError("502")] * len(evidence.PAUSES)))
    reading.cache.put(PODS, engine_pod(phase="Failed", **ended(1)))

    await reading.until_read()

    assert len(reading.kubelet.asked) == len(evidence.PAUSES)
    assert reading.cache.snapshot(0).pods[0].ended.log == ""  # type: ignore[union-attr]


async def test_a_pod_that_is_gone_is_asked_for_once() -> None:
    reading = Reading(Kubelet(errors=[NotFound("no such pod", 404)]))
    reading.cache.put(PODS, engine_pod(phase="Failed", **ended(1)))

    await reading.until_read()

    assert len(reading.kubelet.asked) == 1


async def test_a_start_that_became_ready_is_read_once() -> None:
    reading = Reading(Kubelet("GPU KV cache size: 340,208 tokens"))
    reading.cache.put(PODS, engine_pod(version=1, phase="Running"))
    await reading.until_read()
    assert reading.kubelet.asked == []

    reading.cache.put(PODS, engine_pod(version=2, phase="Running", ready=True))
    await reading.until_read()
    await reading.until_read()

    assert len(reading.kubelet.asked) == 1
    assert "340,208" in (reading.cache.snapshot(0).pods[0].start_log or "")


async def test_what_a_status_tells_already_is_not_asked_for_after_a_restart_of_the_controller() -> None:
    reading = Reading()
    learned = [{"key": "k", "weights": "43.9Gi"}]
    models = [{"name": "mistral", "desired": 1, "ready": 1, "replicas": [], "learned": learned}]
    reading.cache.put(PLACEMENTS, placement(status={"observedGeneration": 1, "conditions": [], "models": models}))
    reading.cache.put(PODS, engine_pod(phase="Running", ready=True))

    await reading.until_read()

    assert reading.kubelet.asked == []
    assert reading.cache.snapshot(0).pods[0].start_log == ""


async def test_nothing_is_remembered_of_a_start_that_was_deleted() -> None:
    reading = Reading()
    reading.cache.put(PODS, engine_pod())
    reading.consider()
    assert reading.evidence._running == {"u1"}

    reading.cache.remove(PODS, engine_pod(version=2))
    reading.consider()

    assert reading.evidence._running == set()
