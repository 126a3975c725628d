"""The simulator against a real API server: watches pods and nodes, plays the kubelets, engines and agents of GPU nodes.

`Sim` runs its own thread and event loop, so that a synchronous test can use it; every public method is thread-safe.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, TypeVar

import aiohttp

from tests.sim.agent import Agent
from tests.sim.audit import Audit
from tests.sim.client import ApiError, Client, Object
from tests.sim.logs import LogServer
from tests.sim.node import SimNode
from tests.sim.products import PRODUCTS
from tests.sim.settings import ANNOTATION, Rule, Settings, secret_names
from tests.sim.world import Remove, World, Write, WriteStatus, parse_bytes

T = TypeVar("T")
SIMULATED = "kwok.x-k8s.io/node"
STRATEGIC = "application/strategic-merge-patch+json"
MERGE = "application/merge-patch+json"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
WRITERS = 16


def node_manifest(
    name: str, product: str, gpus: int, *, labels: dict[str, str] | None = None, annotations: dict[str, str] | None = None,
    cpu: str = "192", memory: str = "2Ti",
) -> Object:  # fmt: skip
    """A Node that KWOK keeps, as GPU feature discovery labels it; opted in for Cotenant."""
    capacity = {"cpu": cpu, "memory": memory, "pods": "250", "nvidia.com/gpu": str(gpus)}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "annotations": {SIMULATED: "fake", **(annotations or {})},
            "labels": {
                "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
                "nvidia.com/gpu.present": "true", "nvidia.com/gpu.product": product, "nvidia.com/gpu.count": str(gpus),
                "nvidia.com/gpu.memory": str(PRODUCTS[product].total >> 20), "nvidia.com/gpu.sharing-strategy": "none",
                "cotenant.dev/managed": "true", **(labels or {}),
            },
        },
        "status": {"allocatable": capacity, "capacity": capacity},
    }  # fmt: skip


class Sim:
    """Plays all GPU nodes of one cluster. Use as a context manager, or start() and stop()."""

    def __init__(self, kubeconfig: Path | str, settings: Settings | None = None, **changes: Any) -> None:
        self.settings = replace(settings or Settings(), **changes)
        if self.settings.fast and "create_seconds" not in changes:
            self.settings.create_seconds = 0.0
        self._kubeconfig = Path(kubeconfig)
        self._began = time.time()
        self.world = World(self.settings, self._unix)
        self._loop = asyncio.new_event_loop()
        self._thread: threading.Thread | None = None
        self._stopping: asyncio.Event | None = None
        self._started = threading.Event()
        self._failure: BaseException | None = None

    # ------------------------------------------------------------------------------------------------------- lifecycle
    def start(self) -> Self:
        """Begin; returns when every node and pod that is there is known."""
        self._thread = threading.Thread(target=self._run_thread, name="sim", daemon=True)
        self._thread.start()
        self._started.wait()
        if self._failure:
            raise self._failure
        return self

    def stop(self) -> None:
        """End; nodes and pods stay as they are."""
        if self._thread and self._thread.is_alive() and self._stopping:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join(timeout=10)

    def ask_to_stop(self) -> None:
        """From inside its own loop: end soon."""
        if self._stopping:
            self._stopping.set()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run_thread(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self.run())
        except BaseException as error:
            self._failure = error
            if self._started.is_set():
                raise
        finally:
            self._started.set()
            self._loop.close()

    async def run(self) -> None:
        """The whole simulation, until stop()."""
        self._stopping = asyncio.Event()
        self._wake = asyncio.Event()
        self._queue: asyncio.Queue[Write] = asyncio.Queue()
        self._synced = {"nodes": asyncio.Event(), "pods": asyncio.Event()}
        self._node_objects: dict[str, Object] = {}
        self._waiting_pods: dict[tuple[str, str], Object] = {}
        async with Client(self._kubeconfig) as self._client, asyncio.TaskGroup() as tasks:
            self._logs = LogServer(self._log_of, self._log_ended)
            await self._logs.start()
            self._agent = Agent(self._client, self.world, fast=self.settings.fast)
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
            self._started.set()
            await self._stopping.wait()
            for task in running:
                task.cancel()
            await self._logs.stop()

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
            self._advance()
            wait = (self.world.next_at - self.now()) / self.settings.speed
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), None if wait == math.inf else max(wait, 0.0))

    def _advance(self) -> None:
        self.world.advance(self.now())
        for write in self.world.outbox:
            self._queue.put_nowait(write)
        self.world.outbox.clear()
        if self.world.dirty:
            self._agent.ring()

    # ------------------------------------------------------------------------------------------------------ what it sees
    async def _watch_pods(self) -> None:
        await self._synced["nodes"].wait()
        async for kind, pod in self._client.watch("/api/v1/pods"):
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
            secret = await self._client.exists(f"/api/v1/namespaces/{namespace}/secrets/{name}")
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
        async for kind, node in self._client.watch("/api/v1/nodes", selector="nvidia.com/gpu.product"):
            if kind == "SYNCED":
                self._synced["nodes"].set()
                continue
            name = node["metadata"]["name"]
            if kind == "DELETED":
                self._node_objects.pop(name, None)
                self.world.remove_node(name, self.now())
                continue
            try:
                await self._adopt(name, node)
            except ValueError as error:
                print(f"sim: node {name}: {error}", flush=True)
            self._wake.set()

    async def _adopt(self, name: str, node: Object) -> None:
        metadata = node["metadata"]
        annotations = metadata.get("annotations") or {}
        if annotations.get(SIMULATED) != "fake":
            return
        before = self._node_objects.get(name)
        if before and before["metadata"]["uid"] != metadata["uid"]:
            self.world.remove_node(name, self.now())
        if name not in self.world.nodes:
            label = metadata["labels"]["nvidia.com/gpu.product"]
            if label not in PRODUCTS:
                raise ValueError(f'unknown product "{label}"; known: {", ".join(PRODUCTS)}')
            islands = [
                int(part) if part != "-" else None
                for part in annotations.get(f"{ANNOTATION}islands", "").split(",")
                if part
            ]
            self.world.add_node(SimNode.make(
                name, PRODUCTS[label], int((node["status"].get("capacity") or {}).get("nvidia.com/gpu") or metadata["labels"].get("nvidia.com/gpu.count", "1")),
                seed=self.settings.seed, islands=islands or None, style=annotations.get(f"{ANNOTATION}injection", self.settings.style),
                shuffle=self.settings.shuffle))  # fmt: skip
        self._node_objects[name] = node
        await self._announce_logs(name, node)
        self._node_faults(name, (before or {"metadata": {}})["metadata"].get("annotations") or {}, annotations)

    async def _announce_logs(self, name: str, node: Object) -> None:
        """The API server must find our log server where it looks for the node's kubelet."""
        status = node.get("status") or {}
        port = (status.get("daemonEndpoints") or {}).get("kubeletEndpoint", {}).get("Port")
        address = next((a["address"] for a in status.get("addresses") or () if a["type"] == "InternalIP"), None)
        if (port, address) != (self._logs.port, "127.0.0.1"):
            wanted = {
                "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}, {"type": "Hostname", "address": name}],
                "daemonEndpoints": {"kubeletEndpoint": {"Port": self._logs.port}},
            }
            await self._client.request(
                "PATCH", f"/api/v1/nodes/{name}/status", {"status": wanted}, content_type=STRATEGIC
            )

    def _node_faults(self, name: str, before: dict[str, str], now: dict[str, str]) -> None:
        """Faults by annotation: acted on when they change."""
        machine = self.world.nodes[name]
        for kind in ("stranger", "health", "gpu-lost", "node", "unsupported"):
            old, new = before.get(ANNOTATION + kind, ""), now.get(ANNOTATION + kind, "")
            if old == new:
                continue
            if kind == "stranger":
                self._strangers(name, {e for e in old.split(",") if e}, {e for e in new.split(",") if e})
            elif kind == "health":
                for entry in {e for e in old.split(",") if e} - {e for e in new.split(",") if e}:
                    self.world.health(name, _index(entry, machine), "Healthy")
                for entry in (e for e in new.split(",") if e):
                    self.world.health(name, _index(entry, machine), entry.split("@")[0])
            elif kind == "gpu-lost" and new:
                for part in new.split(","):
                    self.world.lose_gpu(name, _index(f"@{part}", machine), self.now())
            elif kind == "unsupported":
                machine.unsupported = new
                self.world.dirty.add(name)
            elif kind == "node":
                self._spawn(self._power(name, new))

    def _strangers(self, name: str, before: set[str], now: set[str]) -> None:
        machine = self.world.nodes[name]
        for entry in before - now:
            for pid in machine.strangers.pop(entry, []):
                self.world.end_process(name, pid)
        for entry in sorted(now - before):
            amount, _, where = entry.partition("@")
            _, _, command = where.partition(":")
            pid = self.world.stranger(name, _index(entry, machine), parse_bytes(amount), command or "python")
            machine.strangers.setdefault(entry, []).append(pid)

    def _spawn(self, job: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(job)
        self._jobs = {*getattr(self, "_jobs", set()), task}

    # ------------------------------------------------------------------------------------------------------ what it does
    async def _runtime_class(self) -> None:
        """A node whose runtime knows `nvidia` has a RuntimeClass of that name; with the NRI plugin there is none."""
        if (
            self.settings.style != "nri"
            and await self._client.exists("/apis/node.k8s.io/v1/runtimeclasses/nvidia") is None
        ):
            body = {
                "apiVersion": "node.k8s.io/v1",
                "kind": "RuntimeClass",
                "metadata": {"name": "nvidia"},
                "handler": "nvidia",
            }
            with contextlib.suppress(ApiError):
                await self._client.request("POST", "/apis/node.k8s.io/v1/runtimeclasses", body)

    async def _write(self) -> None:
        while True:
            write = await self._queue.get()
            namespace, name = write.key
            path = f"/api/v1/namespaces/{namespace}/pods/{name}"
            for attempt in range(5):
                try:
                    if isinstance(write, WriteStatus):
                        body: Object = {"metadata": {"uid": write.uid}, "status": write.status}
                        await self._client.request("PATCH", f"{path}/status", body, content_type=STRATEGIC)
                    elif isinstance(write, Remove):
                        options = {"gracePeriodSeconds": 0, "preconditions": {"uid": write.uid}}
                        await self._client.request("DELETE", path, options)
                    break
                except ApiError as error:
                    if error.status in (404, 409):  # gone, or another pod of that name
                        break
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

    async def _power(self, name: str, state: str) -> None:
        """`lost`, `back` (or empty), `reboot`. A lost node's lease is taken from KWOK, which then leaves the node alone."""
        lease = f"{LEASES}/{name}"
        if state == "reboot":
            self.world.reboot(name, self.now())
            await asyncio.sleep(min(2.0, 30.0 / self.settings.speed))
            state = "back"
        if state == "lost":
            self.world.lose(name)
            now = time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime())
            taken = {"spec": {"holderIdentity": "lost", "leaseDurationSeconds": 86_400, "renewTime": now}}
            await self._client.request("PATCH", lease, taken, content_type=MERGE)
        elif name in self.world.nodes:
            with contextlib.suppress(ApiError):
                held = await self._client.request("GET", lease)
                if held["spec"].get("holderIdentity") == "lost":
                    await self._client.request("DELETE", lease)
            self.world.back(name, self.now())
        self._wake.set()

    # ------------------------------------------------------------------------------------------------------- for tests
    def _call(self, what: Callable[[], T]) -> T:
        async def job() -> T:
            answer = what()
            self._advance()
            self._wake.set()
            return answer

        return asyncio.run_coroutine_threadsafe(job(), self._loop).result(30)

    def _do(self, job: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(job, self._loop).result(60)

    @property
    def audit(self) -> Audit:
        """The oracle."""
        return self.world.audit

    def add_node(self, name: str, product: str = "NVIDIA-H100-80GB-HBM3", gpus: int = 8, **more: Any) -> None:
        """Create a Node; returns when it is simulated. `islands=[0,0,1,1]`, `style="jit-cdi"`, labels, annotations."""
        annotations = dict(more.pop("annotations", {}) or {})
        if islands := more.pop("islands", None):
            annotations[f"{ANNOTATION}islands"] = ",".join("-" if i is None else str(i) for i in islands)
        if style := more.pop("style", None):
            annotations[f"{ANNOTATION}injection"] = style
        manifest = node_manifest(name, product, gpus, annotations=annotations, **more)
        manifest["status"]["addresses"] = [
            {"type": "InternalIP", "address": "127.0.0.1"},
            {"type": "Hostname", "address": name},
        ]
        manifest["status"]["daemonEndpoints"] = {"kubeletEndpoint": {"Port": self._logs.port}}
        self._do(self._client.request("POST", "/api/v1/nodes", manifest))
        deadline = time.monotonic() + 30
        while name not in self.world.nodes:
            if time.monotonic() > deadline:
                raise TimeoutError(f"node {name} was not adopted")
            time.sleep(0.02)

    def delete_node(self, name: str) -> None:
        """Delete a Node."""
        self._do(self._client.request("DELETE", f"/api/v1/nodes/{name}"))

    def uuids(self, node: str) -> tuple[str, ...]:
        """The GPUs of a node, by index."""
        return self.world.nodes[node].uuids

    def fault(self, pod: str, fault: str) -> None:
        """`namespace/pod` gets a fault now: die, kill-worker, cuda-oom, oom-killed, never-ready, unready, slow=5, exit=3, leak=2Gi."""
        namespace, name = pod.split("/")
        self._call(lambda: self.world.fault((namespace, name), fault, self.now()))

    def on_start(self, pattern: str, fault: str, times: int = 1, after: float = 0.0) -> None:
        """The next `times` starts of pods `namespace/name` like `pattern` get a fault, `after` simulated seconds."""
        self._call(lambda: self.settings.rules.append(Rule(pattern, fault, times, after)))

    def stranger(self, node: str, index: int, amount: int, command: str = "python", pod: str = "") -> int:
        """A foreign process takes memory; its pid, for `end_process`."""
        return self._call(lambda: self.world.stranger(node, index, amount, command, pod))

    def end_process(self, node: str, pid: int) -> None:
        """A foreign process ends."""
        self._call(lambda: self.world.end_process(node, pid))

    def health(self, node: str, index: int, health: str) -> None:
        """`XID79`, or `Healthy` again."""
        self._call(lambda: self.world.health(node, index, health))

    def lose_gpu(self, node: str, index: int) -> None:
        """A GPU falls off the bus."""
        self._call(lambda: self.world.lose_gpu(node, index, self.now()))

    def lose(self, node: str) -> None:
        """The node is cut off: no heartbeat, no status, no report; its engines run on."""
        self._do(self._power(node, "lost"))

    def back(self, node: str) -> None:
        """The node is reached again."""
        self._do(self._power(node, "back"))

    def reboot(self, node: str) -> None:
        """Everything on it ends at once; it comes back after a moment."""
        self._do(self._power(node, "reboot"))

    def memory(self, node: str) -> list[tuple[int, int]]:
        """(used, usable) bytes of each of its GPUs."""
        return self._call(lambda: [(card.used, card.usable) for card in self.world.nodes[node].cards])

    def engines(self) -> list[dict[str, Any]]:
        """Every engine that runs: pod, node, gpus, phase, ready, share (bytes per GPU), command."""

        def seen() -> list[dict[str, Any]]:
            return [
                {
                    "pod": pod.name, "node": pod.node, "gpus": [card.uuid for card in pod.engine.cards], "phase": str(pod.engine.phase),
                    "ready": pod.ready, "utilization": pod.engine.command.utilization, "command": pod.engine.command,
                }
                for pod in self.world.pods.values()
                if pod.engine and pod.alive
            ]  # fmt: skip

        return self._call(seen)

    def dump(self) -> str:
        """Everything, for a failed test's message."""
        return json.dumps({"engines": self.engines(), "audit": self.audit.report()}, indent=1, default=str)


def _index(entry: str, node: SimNode) -> int:
    """The GPU's index in `20Gi@0:python`."""
    where = entry.partition("@")[2].partition(":")[0] or "0"
    if not where.isdigit() or int(where) >= len(node.cards):
        raise ValueError(f'"{entry}": node {node.name} has GPUs 0 to {len(node.cards) - 1}')
    return int(where)
