"""Publishes GPUNodes the way the node agent does: server-side apply, only when something changed that matters."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import aiohttp

from tests.sim.client import ApiError, Client
from tests.sim.node import SimNode, differs
from tests.sim.pod import rfc3339
from tests.sim.world import World

APPLY = "application/apply-patch+yaml"
MANAGER = "cotenant-agent"
NODES = "/apis/cotenant.dev/v1alpha1/gpunodes"
LEASE_NAMESPACE = "cotenant-system"
LEASE_SECONDS = 40


class Agent:
    """The agents of all simulated nodes."""

    def __init__(self, client: Client, world: World, *, fast: bool) -> None:
        self._client, self._world = client, world
        self._pause = 0.5 if fast else 0.1
        """Seconds in which changes of one node are gathered."""
        self._rung = asyncio.Event()
        self._published: dict[str, list[dict[str, Any]]] = {}
        self._conditions: dict[str, tuple[str, str]] = {}
        self._created: set[str] = set()
        self._offered: dict[str, int] = {}
        """GPUs the Node says are allocatable, where that changed."""

    def ring(self) -> None:
        """Some node has something to look at."""
        self._rung.set()

    def forget(self, name: str) -> None:
        """The node is gone; a new one of its name begins anew."""
        for known in (self._published, self._conditions, self._offered):
            known.pop(name, None)
        self._created.discard(name)

    async def run(self) -> None:
        """Publish until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._leases())
            while True:
                await self._rung.wait()
                await asyncio.sleep(self._pause)
                self._rung.clear()
                names = [name for name in self._world.dirty if name in self._world.nodes]
                self._world.dirty.clear()
                again = await asyncio.gather(*(self._publish(self._world.nodes[name]) for name in names))
                if retry := [name for name, failed in zip(names, again, strict=True) if failed]:
                    await asyncio.sleep(0.5)
                    self._world.dirty.update(retry)
                    self._rung.set()

    async def _publish(self, node: SimNode) -> bool:
        """Whether it has to be tried again."""
        if node.lost:
            return False  # `back` rings again
        reading = node.reading()
        changed = differs(reading, self._published.get(node.name))
        if not changed and self._conditions.get(node.name, ("", ""))[0] == node.unsupported:
            return False
        try:
            await self._allocatable(node)
            await self._apply(node, reading)
        except (ApiError, aiohttp.ClientError, OSError, TimeoutError) as error:
            if isinstance(error, ApiError) and error.status == 404:
                self._created.discard(node.name)  # no CRD yet, or somebody deleted it
            elif isinstance(error, ApiError):
                print(f"sim: GPUNode {node.name}: {error}", flush=True)
            return True
        self._published[node.name] = reading
        return False

    async def _allocatable(self, node: SimNode) -> None:
        """The device plugin offers healthy GPUs only."""
        count = sum(1 for card in node.cards if card.health == "Healthy" and not card.lost)
        if count != self._offered.get(node.name, len(node.cards)):
            body = {"status": {"allocatable": {"nvidia.com/gpu": str(count)}}}
            await self._client.request(
                "PATCH", f"/api/v1/nodes/{node.name}/status", body, content_type="application/merge-patch+json"
            )
            self._offered[node.name] = count

    async def _apply(self, node: SimNode, reading: list[dict[str, Any]]) -> None:
        body: dict[str, Any] = {
            "apiVersion": "cotenant.dev/v1alpha1",
            "kind": "GPUNode",
            "metadata": {"name": node.name, "labels": {"nvidia.com/gpu.product": node.product.label}},
        }
        query = {"fieldManager": MANAGER, "force": "true"}
        if node.name not in self._created:
            await self._client.request("PATCH", f"{NODES}/{node.name}", body, content_type=APPLY, **query)
            self._created.add(node.name)
        status = {
            "observedGeneration": 1,
            "driverVersion": "580.159.04",
            "agentVersion": "0.1.0",
            "conditions": self._condition_list(node),
            "gpus": reading,
            "summary": f"{len(reading)} x {node.product.name}",
        }
        del body["metadata"]["labels"]
        await self._client.request(
            "PATCH", f"{NODES}/{node.name}/status", {**body, "status": status}, content_type=APPLY, **query
        )

    def _condition_list(self, node: SimNode) -> list[dict[str, Any]]:
        was = self._conditions.get(node.name)
        if was is None or was[0] != node.unsupported:
            self._conditions[node.name] = was = (node.unsupported, rfc3339(time.time()))
        bad = node.unsupported
        return [
            {"type": "Ready", "status": "True", "reason": "Reporting", "message": "NVML answers", "observedGeneration": 1, "lastTransitionTime": was[1]},
            {"type": "Supported", "status": "False" if bad else "True", "reason": bad or "Supported",
             "message": f"these GPUs cannot be shared: {bad}" if bad else "", "observedGeneration": 1, "lastTransitionTime": was[1]},
        ]  # fmt: skip

    async def _leases(self) -> None:
        """The agents' heartbeat, where their namespace exists."""
        path = f"/apis/coordination.k8s.io/v1/namespaces/{LEASE_NAMESPACE}/leases"
        while True:
            for name, node in list(self._world.nodes.items()):
                if node.lost:
                    continue
                now = time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime())
                body = {
                    "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name},
                    "spec": {"holderIdentity": "agent", "leaseDurationSeconds": LEASE_SECONDS, "renewTime": now},
                }  # fmt: skip
                try:
                    await self._client.request(
                        "PATCH", f"{path}/{name}", body, content_type=APPLY, fieldManager=MANAGER, force="true"
                    )
                except ApiError as error:
                    if error.status == 404:
                        break  # no such namespace (yet)
                except (aiohttp.ClientError, OSError, TimeoutError):
                    break
            await asyncio.sleep(LEASE_SECONDS / 4)
