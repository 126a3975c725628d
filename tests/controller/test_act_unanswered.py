"""A create whose answer is lost on the way: the pod is there, and nothing may be decided as if it were not."""

from __future__ import annotations

import time
from typing import Any

from cotenant.controller.act import Act
from cotenant.controller.cache import Cache
from cotenant.controller.sources import PODS, sources
from cotenant.core.decision import Create, Decision
from cotenant.core.names import FIELD_MANAGER
from cotenant.core.snapshot import Manifest, Policy
from cotenant.errors import ClusterError
from cotenant.kube import Kube
from tests.cluster.control_plane import ControlPlane
from tests.controller.builders import engine_pod


class Unanswered(Kube):
    """The real API server does what it is asked; the answers to creates are lost."""

    async def create(self, manifest: Manifest, field_manager: str = FIELD_MANAGER) -> Manifest:
        await super().create(manifest, field_manager)
        raise ClusterError("creating a pod: no answer in time")


def wish(name: str, namespace: str) -> Create:
    meta = engine_pod(name, namespace)["metadata"]
    metadata = {"name": name, "namespace": namespace, "labels": meta["labels"], "annotations": meta["annotations"]}
    spec: dict[str, Any] = {"containers": [{"name": "engine", "image": "localhost/x"}]}
    return Create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}, "Starting")


async def test_the_next_decision_is_not_carried_out_before_the_lost_pod_is_known(
    with_crds: ControlPlane, namespace: str
) -> None:
    async with await Unanswered.connect(str(with_crds.kubeconfig)) as kube:
        cache = Cache(sources(Policy()), Policy())
        rings: list[float] = []
        act = Act(kube, cache, 4, "test", rings.append)
        first = await act.carry_out(Decision(creates=(wish("a-m-0", namespace),)), cache.snapshot(time.time()))
        assert first.failed == 1
        assert cache.snapshot(0).pods == ()

        blind = await act.carry_out(Decision(creates=(wish("b-m-0", namespace),)), cache.snapshot(time.time()))

        assert blind.failed == 1
        assert [pod.name for pod in cache.snapshot(0).pods] == ["a-m-0"], "now it is known"
        assert [pod["metadata"]["name"] for pod in await kube.list("v1", "Pod", namespace)] == ["a-m-0"]
        await act.stop()
        assert cache.uid(PODS, (namespace, "a-m-0"))
