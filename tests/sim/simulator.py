"""The simulator for tests: its own thread and event loop, so that a synchronous test can use it; every method is thread-safe."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, TypeVar

from tests.cluster.kwok import gpu_node
from tests.sim import mishaps
from tests.sim.audit import Audit
from tests.sim.client import Object
from tests.sim.products import PRODUCTS
from tests.sim.settings import ANNOTATION, Rule, Settings
from tests.sim.shell import Shell
from tests.sim.world import World

T = TypeVar("T")


def node_manifest(
    name: str, product: str, gpus: int, *, labels: dict[str, str] | None = None, annotations: dict[str, str] | None = None,
    cpu: str = "192", memory: str = "2Ti",
) -> Object:  # fmt: skip
    """A Node that KWOK keeps, as GPU feature discovery labels it; opted in for Cotenant."""
    node = gpu_node(
        name, product, gpus, PRODUCTS[product].total >> 20, {"cotenant.dev/managed": "true", **(labels or {})}
    )
    node["metadata"]["annotations"] = {**node["metadata"].get("annotations", {}), **(annotations or {})}
    for size in (node["status"]["allocatable"], node["status"]["capacity"]):
        size |= {"cpu": cpu, "memory": memory}
    return node


class Sim:
    """Plays all GPU nodes of one cluster. Use as a context manager, or start() and stop()."""

    def __init__(self, kubeconfig: Path | str, settings: Settings | None = None, **changes: Any) -> None:
        self.settings = replace(settings or Settings(), **changes)
        if self.settings.fast and "create_seconds" not in changes:
            self.settings.create_seconds = 0.0
        self._shell = Shell(Path(kubeconfig), self.settings)
        self._loop = asyncio.new_event_loop()
        self._thread: threading.Thread | None = None
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
        if self._thread and self._thread.is_alive():
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._shell.ask_to_stop)
            self._thread.join(timeout=10)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run_thread(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._shell.run(self._started.set))
        except BaseException as error:
            self._failure = error
            if self._started.is_set():
                raise
        finally:
            self._started.set()
            self._loop.close()

    # ------------------------------------------------------------------------------------------------------- for tests
    def _call(self, what: Callable[[], T]) -> T:
        async def job() -> T:
            answer = what()
            self._shell.poke()
            return answer

        return asyncio.run_coroutine_threadsafe(job(), self._loop).result(30)

    def _do(self, job: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(job, self._loop).result(60)

    @property
    def world(self) -> World:
        """Everything simulated; read it only through `_call`."""
        return self._shell.world

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
        manifest["status"]["daemonEndpoints"] = {"kubeletEndpoint": {"Port": self._shell.logs.port}}
        self._do(self._shell.client.request("POST", "/api/v1/nodes", manifest))
        deadline = time.monotonic() + 30
        while name not in self.world.nodes:
            if time.monotonic() > deadline:
                raise TimeoutError(f"node {name} was not adopted")
            time.sleep(0.02)

    def delete_node(self, name: str) -> None:
        """Delete a Node."""
        self._do(self._shell.client.request("DELETE", f"/api/v1/nodes/{name}"))

    def uuids(self, node: str) -> tuple[str, ...]:
        """The GPUs of a node, by index."""
        return self.world.nodes[node].uuids

    def fault(self, pod: str, fault: str) -> None:
        """`namespace/pod` gets a fault now: die, kill-worker, cuda-oom, oom-killed, hang, unready, exit=3, leak=2Gi; never-ready and slow=5 while it starts."""
        namespace, name = pod.split("/")
        self._call(lambda: self.world.fault((namespace, name), fault, self._shell.now()))

    def on_start(self, pattern: str, fault: str, times: int = 1, after: float = 0.0) -> None:
        """The next `times` starts of pods `namespace/name` like `pattern` get a fault, `after` simulated seconds."""
        self._call(lambda: self.settings.rules.append(Rule(pattern, fault, times, after)))

    def stranger(self, node: str, index: int, amount: int, command: str = "python", pod: str = "") -> int:
        """A foreign process takes memory; its pid, for `end_process`."""
        return self._call(lambda: mishaps.stranger(self.world, node, index, amount, command, pod))

    def end_process(self, node: str, pid: int) -> None:
        """A foreign process ends."""
        self._call(lambda: mishaps.end_process(self.world, node, pid))

    def health(self, node: str, index: int, health: str) -> None:
        """`XID79`, or `Healthy` again."""
        self._call(lambda: mishaps.health(self.world, node, index, health))

    def islands(self, node: str, joined: list[int | None]) -> None:
        """NVLink as it is from now on, by index of the GPU."""
        self._call(lambda: mishaps.islands(self.world, node, joined))

    def lose_gpu(self, node: str, index: int) -> None:
        """A GPU falls off the bus."""
        self._call(lambda: mishaps.lose_gpu(self.world, node, index, self._shell.now()))

    def lose(self, node: str) -> None:
        """The node is cut off: no heartbeat, no status, no report; its engines run on."""
        self._do(self._shell.power(node, "lost"))

    def back(self, node: str) -> None:
        """The node is reached again."""
        self._do(self._shell.power(node, "back"))

    def reboot(self, node: str) -> None:
        """Everything on it ends at once; it comes back after a moment."""
        self._do(self._shell.power(node, "reboot"))

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
