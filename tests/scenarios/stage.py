"""One cluster, one simulator and the real controller under the chart's own rights: what scenario tests act on."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Callable
from typing import Any

from tests import install
from tests.cluster.control_plane import ControlPlane
from tests.sim import Sim

VERSION = "cotenant.dev/v1alpha1"
Object = dict[str, Any]


class Stage:
    """Applies placements and waits for what must come of them."""

    def __init__(self, cluster: ControlPlane, sim: Sim, **settings: str) -> None:
        self.cluster, self.sim, self.api = cluster, sim, cluster.api
        self._controller = install.install(cluster, settings=settings)
        self.namespace = "default"
        self._killed: set[str] = set()
        """Controllers that were killed on purpose and not started again."""

    # --------------------------------------------------------------------------------------------------- the controller
    def start_controller(self, name: str = "controller") -> None:
        """Run the controller as the chart would: its ServiceAccount's token, its settings."""
        self.cluster.processes.start(name, list(self._controller.command), self._controller.env)
        self._killed.discard(name)

    def kill_controller(self, name: str = "controller") -> None:
        """`kill -9`."""
        self._killed.add(name)
        self.cluster.processes.kill(name)

    def end_controller(self) -> None:
        """SIGTERM, and wait for its end."""
        self.cluster.processes.end("controller")

    def series(self, name: str) -> dict[str, float]:
        """One series of the controller's /metrics: value by labels as written, e.g. `verdict="Killed"`."""
        log = (self.cluster.processes.logs / "controller.log").read_text(errors="replace")
        port = re.findall(r"/metrics on port (\d+)", log)[-1]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        found = re.findall(rf"^{name}(?:\{{(.*)\}})? (\S+)$", text, re.M)
        return {labels: float(value) for labels, value in found}

    # ----------------------------------------------------------------------------------------------------- a world each
    def new_namespace(self, name: str) -> None:
        """A namespace for one test's placements."""
        self.api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        self.namespace = name

    def clear(self, nodes: list[str]) -> None:
        """Delete every placement and the nodes of one test; returns when nothing of it is left."""
        for item in self.api.list(VERSION, "ModelPlacement"):
            self.api.delete(VERSION, "ModelPlacement", item["metadata"]["name"], item["metadata"]["namespace"])
        self.until(lambda: not self.pods(everywhere=True), 60, "engines to be gone")
        for node in nodes:
            self.sim.delete_node(node)
            self.api.delete(VERSION, "GPUNode", node)
        self.until(lambda: not self.helpers(), 60, "holders to be gone")

    # ------------------------------------------------------------------------------------------------------ what is there
    def apply(self, name: str, *models: Object, nodes: Object | None = None, **spec: Any) -> None:
        """Apply a placement, as a user would: the whole spec, by one field manager."""
        body: Object = {"models": list(models), **spec}
        if nodes:
            body["nodes"] = nodes
        metadata = {"name": name, "namespace": self.namespace}
        self.api.apply(
            {"apiVersion": VERSION, "kind": "ModelPlacement", "metadata": metadata, "spec": body}, manager="user"
        )

    def delete(self, name: str) -> None:
        """Delete a placement."""
        self.api.delete(VERSION, "ModelPlacement", name, self.namespace)

    def placement(self, name: str) -> Object:
        """A placement as it stands."""
        return self.api.get(VERSION, "ModelPlacement", name, self.namespace)

    def condition(self, name: str, kind: str) -> Object:
        """One of its conditions, empty while there is none for this generation."""
        found = self.placement(name)
        status = found.get("status") or {}
        if status.get("observedGeneration") != found["metadata"]["generation"]:
            return {}
        return next((c for c in status.get("conditions") or () if c["type"] == kind), {})

    def replicas(self, name: str) -> list[Object]:
        """Every replica's status, with its model's name."""
        models = (self.placement(name).get("status") or {}).get("models") or ()
        return [{"model": model["name"], **replica} for model in models for replica in model.get("replicas") or ()]

    def pods(self, placement: str = "", *, everywhere: bool = False) -> list[Object]:
        """Engine pods."""
        labels = "cotenant.dev/role=engine" + (f",cotenant.dev/placement={placement}" if placement else "")
        return self.api.list("v1", "Pod", None if everywhere else self.namespace, labels=labels)

    def helpers(self) -> list[Object]:
        """Holders and preflights."""
        return self.api.list("v1", "Pod", labels="cotenant.dev/role in (holder,preflight)")

    def ready_pods(self, placement: str = "") -> list[Object]:
        """Engine pods that serve."""
        return [pod for pod in self.pods(placement) if is_ready(pod) and "deletionTimestamp" not in pod["metadata"]]

    # ---------------------------------------------------------------------------------------------------------- waiting
    def until(self, true: Callable[[], Any], seconds: float, what: str) -> Any:
        """Wait until `true` says something true; AssertionError with everything there is to know if it does not."""
        deadline = time.monotonic() + seconds
        while not (answer := true()):
            ended = [name for name in self.cluster.processes.ended() if name not in self._killed]
            assert not ended, f"{', '.join(ended)} ended by itself\n{self.cluster.processes.tail(ended[0])}"
            assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}\n{self.dump()}"
            time.sleep(0.1)
        return answer

    def until_ready(self, name: str, seconds: float = 60) -> None:
        """Wait until the placement says Ready of its newest spec."""
        self.until(lambda: self.condition(name, "Ready").get("status") == "True", seconds, f"{name} to be Ready")

    def until_reason(self, name: str, reason: str, seconds: float = 60, kind: str = "Ready") -> Object:
        """Wait until a condition has this reason; the condition."""
        found: Object = self.until(
            lambda: (c := self.condition(name, kind)).get("reason") == reason and c, seconds, f"{name} {kind}={reason}"
        )
        return found

    def check(self) -> None:
        """Nothing happened that must never happen."""
        assert self.sim.audit.violations == [], f"{self.sim.audit.report()}\n{self.dump()}"

    def dump(self) -> str:
        """Statuses, pods, GPUs and the controller's last words."""
        lines = []
        for item in self.api.list(VERSION, "ModelPlacement"):
            lines.append(
                f"{item['metadata']['namespace']}/{item['metadata']['name']}: {json.dumps(item.get('status'))[:3000]}"
            )
        for pod in [*self.pods(everywhere=True), *self.helpers()]:
            state = (pod["status"].get("containerStatuses") or [{}])[0].get("state")
            ready: Object = next((c for c in pod["status"].get("conditions") or () if c["type"] == "Ready"), {})
            lines.append(
                f"{pod['metadata']['name']}: {pod['status'].get('phase')} {json.dumps(state)[:300]} {json.dumps(ready)}"
            )
        lines += [
            " ".join(str(engine[part]) for part in ("pod", "node", "gpus", "phase", "utilization"))
            for engine in self.sim.engines()
        ]
        lines.append(self.sim.audit.report())
        lines.append(self.cluster.processes.tail("controller"))
        return "\n".join(lines)


def is_ready(pod: Object) -> bool:
    """Whether a pod's condition Ready is true."""
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions") or ())


def model(name: str, share: str, uri: str = "hf://sim/tiny", **more: Any) -> Object:
    """A model of a placement."""
    engine = {"maxModelLen": 8192, "maxNumBatchedTokens": 2048, **more.pop("engine", {})}
    return {"name": name, "uri": uri, "share": share, "engine": engine, **more}


def flag(pod: Object) -> str:
    """The live pod's --gpu-memory-utilization."""
    args = pod["spec"]["containers"][0]["args"]
    at = next(i for i, word in enumerate(args) if word.startswith("--gpu-memory-utilization"))
    return str(args[at].partition("=")[2] or args[at + 1])


def gpus(pod: Object) -> list[str]:
    """The UUIDs a pod was given."""
    found: list[str] = json.loads(pod["metadata"]["annotations"]["cotenant.dev/allocation"])["gpus"]
    return found


def provide_claim(stage: Stage, claim: str) -> None:
    """A claim with the volume that it binds to."""
    size, modes = {"storage": "1Gi"}, ["ReadWriteMany"]
    bound = {"accessModes": modes, "storageClassName": ""}
    volume = {**bound, "capacity": size, "hostPath": {"path": "/tmp"}}
    volume["claimRef"] = {"namespace": stage.namespace, "name": claim}
    name = f"{stage.namespace}-{claim}"
    api = stage.cluster.api
    api.create({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": volume})
    meta = {"name": claim, "namespace": stage.namespace}
    spec = {**bound, "volumeName": name, "resources": {"requests": size}}
    api.create({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta, "spec": spec})
