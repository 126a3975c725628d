"""kopf as the doorbell: it tells of what is selected, and writes nothing to anybody's objects."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

from cotenant.controller.handlers import Doorbell, News
from cotenant.controller.sources import PLACEMENTS, PODS, sources
from cotenant.core.snapshot import Policy
from cotenant.kube import Kube
from tests.controller.builders import engine_pod, placement

API = "cotenant.dev/v1alpha1"


class Ear:
    """Listens to a doorbell."""

    def __init__(self, kube: Kube, namespaces: tuple[str, ...] = ()) -> None:
        self.heard: list[News] = []
        self._bell = Doorbell(sources(Policy()), namespaces, kube.connection, self._hear)

    def _hear(self) -> None:
        self.heard += self._bell.news()

    async def __aenter__(self) -> Ear:
        self._bell.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._bell.stop()
        assert await self._bell.ended(10)

    async def until(self, kind: str, name: str, deleted: bool = False) -> dict[str, Any]:
        """The first such news."""
        for _ in range(150):
            for source, gone, body in self.heard:
                if source == kind and gone == deleted and body["metadata"]["name"] == name:
                    return body
            await asyncio.sleep(0.1)
        raise AssertionError(f"no news of {kind} {name}: {[(s, d, b['metadata']['name']) for s, d, b in self.heard]}")


def ours(name: str, namespace: str, **labels: str) -> dict[str, Any]:
    made = engine_pod(name, namespace)
    made["metadata"] = {"name": name, "namespace": namespace, "labels": {**made["metadata"]["labels"], **labels}}
    made["spec"] = {"containers": [{"name": "engine", "image": "localhost/x"}]}
    del made["status"]
    return made


async def test_it_tells_what_is_there_what_comes_and_what_goes_of_the_selected_only(kube: Kube, namespace: str) -> None:
    await kube.create(ours("before", namespace))
    async with Ear(kube) as ear:
        await ear.until(PODS, "before")
        strange = ours("strange", namespace)
        strange["metadata"]["labels"] = {"app": "x"}
        await kube.create(strange)
        await kube.create(ours("after", namespace))
        await ear.until(PODS, "after")
        await kube.delete("v1", "Pod", "before", namespace, grace_seconds=0)
        await ear.until(PODS, "before", deleted=True)

    assert "strange" not in {body["metadata"]["name"] for _, _, body in ear.heard}


async def test_it_writes_nothing_to_a_users_object(kube: Kube, namespace: str) -> None:
    wish = {**placement(), "metadata": {"name": "sparrow", "namespace": namespace, "annotations": {"mine": "1"}}}
    made = await kube.create(wish, field_manager="user")
    async with Ear(kube) as ear:
        await ear.until(PLACEMENTS, "sparrow")
        changed = copy.deepcopy(made)
        changed["spec"]["models"][0]["share"] = "60%"
        changed = await kube.replace(changed, field_manager="user")
        await asyncio.sleep(2)  # whatever it meant to write it would have written
        live = await kube.get(API, "ModelPlacement", "sparrow", namespace)

    assert live["metadata"]["resourceVersion"] == changed["metadata"]["resourceVersion"]
    assert live["metadata"]["annotations"] == {"mine": "1"}
    assert "finalizers" not in live["metadata"]
    assert {entry["manager"] for entry in live["metadata"]["managedFields"]} == {"user"}
    deleted = await kube.delete(API, "ModelPlacement", "sparrow", namespace)
    assert "deletionTimestamp" not in deleted.get("metadata", {}), "nothing holds it back"


async def test_it_looks_into_the_named_namespaces_and_at_what_has_none(kube: Kube, namespace: str) -> None:
    async with Ear(kube, (namespace,)) as ear:
        await kube.create({"apiVersion": API, "kind": "GPUNode", "metadata": {"name": f"of-{namespace}"}})
        await kube.create(ours("elsewhere", "default"))
        await kube.create(ours("here", namespace))
        await ear.until(PODS, "here")
        await ear.until("gpunodes", f"of-{namespace}")
    await kube.delete("v1", "Pod", "elsewhere", "default", grace_seconds=0)
    await kube.delete(API, "GPUNode", f"of-{namespace}")

    assert "elsewhere" not in {body["metadata"]["name"] for _, _, body in ear.heard}
