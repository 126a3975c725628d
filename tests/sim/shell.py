"""The asynchronous shell around the world: watches pods and nodes, writes what the world wants written."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import aiohttp

from tests.cluster.kwok import SIMULATED
from tests.sim import mishaps
from tests.sim.agent import Agent
from tests.sim.annotations import changed, parse_islands
from tests.sim.client import ApiError, Client, Object
from tests.sim.logs import LogServer
from tests.sim.node import SimNode
from tests.sim.pod import Key
from tests.sim.products import PRODUCTS
from tests.sim.settings import ANNOTATION, Settings, secret_names
from tests.sim.world import Remove, World, Write, WriteStatus

STRATEGIC = "application/strategic-merge-patch+json"
MERGE = "application/merge-patch+json"
WRITERS = 16


class Shell:
    """Plays all GPU nodes of one cluster, inside one event loop."""

    def __init__(self, kubeconfig: Path, settings: Settings) -> None:
        self.settings = settings
        self._kubeconfig = kubeconfig
        self._began = time.time()
        self.world = World(settings, self._unix)
        self._jobs: set[asyncio.Task[None]] = set()
        self._stopping: asyncio.Event | None = None
        self._told = 0
        """Violations already printed."""

    def ask_to_stop(self) -> None:
        """From inside its own loop: end soon."""
        if self._stopping:
            self._stopping.set()

    async def run(self, started: Callable[[], None] = lambda: None) -> None:
        """The whole simulation, until ask_to_stop(); `started` is called when every node and pod that is there is known."""
        self._stopping = asyncio.Event()
        self._wake = asyncio.Event()
        self._queue: asyncio.Queue[tuple[Key, str]] = asyncio.Queue()
        self._unsent: dict[tuple[Key, str], list[Write]] = {}
        self._synced = {"nodes": asyncio.Event(), "pods": asyncio.Event()}
        self._node_objects: dict[str, Object] = {}
        self._waiting_pods: dict[tuple[str, str], Object] = {}
        async with Client(self._kubeconfig) as self.client, asyncio.TaskGroup() as tasks:
            self.logs = LogServer(self._log_of, self._log_ended)
            await self.logs.start()
            self._agent = Agent(self.client, self.world, fast=self.settings.fast)
            await self._runtime_class()
            running = [
                tasks.create_task(job)
                for job in (
                    self._watch_nodes(), self._watch_pods(), self._drive(), self._agent.run(), self._recheck_secrets(),
                    *(self._write() for _ in range(WRITERS)),
                )
            ]  # fmt: skip
            for event in self._synced.values():
                await event.wait()
            started()
            await self._stopping.wait()
            for task in running:
                task.cancel()
            await self.logs.stop()

    # ------------------------------------------------------------------------------------------------------- the clock
    def now(self) -> float:
        """Simulated seconds since the start."""
        return (time.time() - self._began) * self.settings.speed

    def _unix(self, now: float) -> float:
        return self._began + now / self.settings.speed

    async def _drive(self) -> None:
        """Advance the world whenever something is due, and send what it wants written."""
        while True:
            self._wake.clear()
            self.advance()
            wait = (self.world.next_at - self.now()) / self.settings.speed
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), None if wait == math.inf else max(wait, 0.0))

    def poke(self) -> None:
        """Something was changed from outside: look again what is due."""
        self.advance()
        self._wake.set()

    def advance(self) -> None:
        """Bring the world to now, and send what it wants written."""
        self.world.advance(self.now())
        for write in self.world.outbox:
            self._enqueue(write)
        self.world.outbox.clear()
        for violation in self.world.audit.violations[self._told :]:
            print(f"sim: VIOLATION {violation}", flush=True)
        self._told = len(self.world.audit.violations)
        if self.world.dirty:
            self._agent.ring()

    # ------------------------------------------------------------------------------------------------------ what it sees
    async def _watch_pods(self) -> None:
        await self._synced["nodes"].wait()
        async for kind, pod in self.client.watch("/api/v1/pods"):
            if kind == "SYNCED":
                self._synced["pods"].set()
                continue
            metadata = pod["metadata"]
            key = (metadata["namespace"], metadata["name"])
            if kind == "DELETED":
                self._waiting_pods.pop(key, None)
                self.world.pod_gone(key, metadata["uid"], self.now())
            elif pod["spec"].get("nodeName") in self.world.nodes:
                await self._see(key, pod)
            self._wake.set()

    async def _see(self, key: tuple[str, str], pod: Object) -> None:
        known = self.world.pods.get(key)
        begun = known is not None and known.began and known.uid == pod["metadata"]["uid"]
        missing = "" if begun else await self._missing_secret(pod)
        if missing:
            self._waiting_pods[key] = pod
        else:
            self._waiting_pods.pop(key, None)
        try:
            self.world.pod_seen(pod, self.now(), missing)
        except ValueError as error:
            print(f"sim: pod {'/'.join(key)}: {error}", flush=True)

    async def _missing_secret(self, pod: Object) -> str:
        namespace = pod["metadata"]["namespace"]
        for name, entry in secret_names(pod):
            secret = await self.client.exists(f"/api/v1/namespaces/{namespace}/secrets/{name}")
            if secret is None:
                return f'secret "{name}" not found'
            if entry and entry not in (secret.get("data") or {}):
                return f"couldn't find key {entry} in Secret {namespace}/{name}"
        return ""

    async def _recheck_secrets(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            for key, pod in list(self._waiting_pods.items()):
                await self._see(key, pod)
                self._wake.set()

    async def _watch_nodes(self) -> None:
        async for kind, node in self.client.watch("/api/v1/nodes", selector="nvidia.com/gpu.product"):
            if kind == "SYNCED":
                self._synced["nodes"].set()
                continue
            name = node["metadata"]["name"]
            if kind == "DELETED":
                self._node_objects.pop(name, None)
                self._remove(name)
                continue
            try:
                await self._adopt(name, node)
            except ValueError as error:
                print(f"sim: node {name}: {error}", flush=True)
            self._wake.set()

    def _remove(self, name: str) -> None:
        self.world.remove_node(name, self.now())
        self._agent.forget(name)

    async def _adopt(self, name: str, node: Object) -> None:
        metadata = node["metadata"]
        annotations = metadata.get("annotations") or {}
        simulated = metadata["labels"].get(SIMULATED) == "true"
        if not simulated and name not in self.world.nodes:
            return
        before = self._node_objects.get(name)
        if before and before["metadata"]["uid"] != metadata["uid"]:
            self._remove(name)
        if name not in self.world.nodes:
            label = metadata["labels"]["nvidia.com/gpu.product"]
            if label not in PRODUCTS:
                raise ValueError(f'unknown product "{label}"; known: {", ".join(PRODUCTS)}')
            islands = parse_islands(annotations.get(f"{ANNOTATION}islands", ""))
            self.world.add_node(SimNode.make(
                name, PRODUCTS[label], int((node["status"].get("capacity") or {}).get("nvidia.com/gpu") or metadata["labels"].get("nvidia.com/gpu.count", "1")),
                seed=self.settings.seed, islands=islands or None, style=annotations.get(f"{ANNOTATION}injection", self.settings.style),
                shuffle=self.settings.shuffle))  # fmt: skip
        self._node_objects[name] = node
        # KWOK leaves a node without the label alone: its lease runs out, as if its machine had died.
        if simulated is self.world.nodes[name].lost:
            (mishaps.back if simulated else mishaps.lose)(self.world, name, self.now())
        await self._announce_logs(name, node)
        was = (before or {"metadata": {}})["metadata"].get("annotations") or {}
        if power := changed(self.world, name, was, annotations, self.now()):
            self._spawn(self.power(name, power))

    async def _announce_logs(self, name: str, node: Object) -> None:
        """The API server must find our log server where it looks for the node's kubelet."""
        status = node.get("status") or {}
        port = (status.get("daemonEndpoints") or {}).get("kubeletEndpoint", {}).get("Port")
        address = next((a["address"] for a in status.get("addresses") or () if a["type"] == "InternalIP"), None)
        if (port, address) != (self.logs.port, "127.0.0.1"):
            wanted = {
                "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}, {"type": "Hostname", "address": name}],
                "daemonEndpoints": {"kubeletEndpoint": {"Port": self.logs.port}},
            }
            await self.client.request(
                "PATCH", f"/api/v1/nodes/{name}/status", {"status": wanted}, content_type=STRATEGIC
            )

    def _spawn(self, job: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(job)
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)

    # ------------------------------------------------------------------------------------------------------ what it does
    async def _runtime_class(self) -> None:
        """A node whose runtime knows `nvidia` has a RuntimeClass of that name; with the NRI plugin there is none."""
        if (
            self.settings.style != "nri"
            and await self.client.exists("/apis/node.k8s.io/v1/runtimeclasses/nvidia") is None
        ):
            body = {
                "apiVersion": "node.k8s.io/v1",
                "kind": "RuntimeClass",
                "metadata": {"name": "nvidia"},
                "handler": "nvidia",
            }
            with contextlib.suppress(ApiError):
                await self.client.request("POST", "/apis/node.k8s.io/v1/runtimeclasses", body)

    def _enqueue(self, write: Write) -> None:
        """One write per pod is under way at a time, in order; a status not yet sent gives way to a newer one."""
        waiting = self._unsent.setdefault((write.key, write.uid), [])
        if not waiting:
            self._queue.put_nowait((write.key, write.uid))
        elif isinstance(waiting[-1], WriteStatus) and isinstance(write, WriteStatus) and len(waiting) > 1:
            waiting.pop()
        waiting.append(write)

    async def _write(self) -> None:
        while True:
            which = await self._queue.get()
            waiting = self._unsent[which]
            while waiting:
                await self._send(waiting[0])  # it stays first in line while it is under way
                waiting.pop(0)
            del self._unsent[which]

    async def _send(self, write: Write) -> None:
        namespace, name = write.key
        path = f"/api/v1/namespaces/{namespace}/pods/{name}"
        for attempt in range(5):
            try:
                if isinstance(write, WriteStatus):
                    body: Object = {"metadata": {"uid": write.uid}, "status": write.status}
                    await self.client.request("PATCH", f"{path}/status", body, content_type=STRATEGIC)
                elif isinstance(write, Remove):
                    options = {"gracePeriodSeconds": 0, "preconditions": {"uid": write.uid}}
                    await self.client.request("DELETE", path, options)
                return
            except ApiError as error:
                if error.status in (404, 409):  # gone, or another pod of that name
                    return
                if attempt == 4:
                    print(f"sim: {name}: {error}", flush=True)
            except (aiohttp.ClientError, OSError, TimeoutError):
                await asyncio.sleep(0.5 * (attempt + 1))

    def _log_of(self, namespace: str, name: str) -> str | None:
        pod = self.world.pods.get((namespace, name))
        return pod.log() if pod and pod.began and not self.world.nodes[pod.node].lost else None

    def _log_ended(self, namespace: str, name: str) -> bool:
        pod = self.world.pods.get((namespace, name))
        return pod is None or not pod.alive

    async def power(self, name: str, state: str) -> None:
        """`lost`, `back` or `reboot`."""
        if state == "reboot":
            mishaps.reboot(self.world, name, self.now())
            # As long as a machine is down; short of what it takes Kubernetes to notice.
            await asyncio.sleep(min(2.0, 30.0 / self.settings.speed))
            mishaps.back(self.world, name, self.now())
            self.poke()
            return
        if name in self.world.nodes:
            (mishaps.lose if state == "lost" else mishaps.back)(self.world, name, self.now())
            labels = {SIMULATED: None if state == "lost" else "true"}
            await self.client.request(
                "PATCH", f"/api/v1/nodes/{name}", {"metadata": {"labels": labels}}, content_type=MERGE
            )
        self.poke()
