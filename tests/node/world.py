"""What the node tests do and see: placements, engines and their orders, the agent's report, pods of others."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from cotenant.core.injection import inject
from cotenant.core.names import API_VERSION, ROLE_LABEL
from tests.cluster.api import Object
from tests.node import images
from tests.node.config import PAUSE_IMAGE
from tests.node.lab import NODE, Lab, is_ready

T = TypeVar("T")
SYSTEM, AGENTS, MODELS = "cotenant-system", "cotenant-agent", "document-ai"
PATIENCE = 180.0
"""Seconds; a machine that does much else at the same time is slow."""

_IMAGE: Object = {"repository": images.COTENANT, "tag": images.TAG, "pullPolicy": "Never"}
VALUES: Object = {
    "controller": {
        "image": _IMAGE,
        "logLevel": "DEBUG",
        "env": {"COTENANT_RESYNC": "15", "COTENANT_HUB_OFFLINE": "true"},
    },
    "injection": {"style": "auto"},
    "agent": {"image": _IMAGE, "intervalSeconds": 1, "logLevel": "DEBUG"},
    "engines": [
        {"name": "vllm", "image": images.ENGINE, "version": "0.33.0"},
        {"name": "nowhere", "image": "localhost/lab/not-there:1", "version": "0.33.0"},
    ],
    "holder": {"image": PAUSE_IMAGE, "idleSeconds": 5},
    "policy": {"defaultCPU": "50m", "defaultMemory": "64Mi", "startTimeoutSeconds": 40},
}
"""The chart's values here: images that are there, small requests, and the injection style as the cluster's objects say."""

CLUSTER_POLICY_CRD: Object = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "clusterpolicies.nvidia.com"},
    "spec": {
        "group": "nvidia.com",
        "names": {"kind": "ClusterPolicy", "plural": "clusterpolicies", "singular": "clusterpolicy"},
        "scope": "Cluster",
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}
CLUSTER_POLICY: Object = {
    "apiVersion": "nvidia.com/v1",
    "kind": "ClusterPolicy",
    "metadata": {"name": "cluster-policy", "labels": {"app.kubernetes.io/version": "v26.7.0"}},
    "spec": {"cdi": {"enabled": True, "nriPluginEnabled": False}},
}
"""As GPU Operator 26.7 makes it by default; the rest of it decides nothing here."""


@dataclass(frozen=True)
class World:
    """The lab with Cotenant on it."""

    lab: Lab

    # --------------------------------------------------------------------------------------------------- placements
    def place(self, name: str, models: dict[str, str], **spec: Any) -> None:
        """Ask for models, name -> share; more of a model's fields by `memory` and the like of `spec`."""
        entries = [{"name": model, "uri": f"hf://example/{model}", "share": share} for model, share in models.items()]
        for entry in entries:
            entry.update(spec.get("each", {}))
        body = {"models": entries, **{key: value for key, value in spec.items() if key != "each"}}
        self.lab.api.apply(
            {
                "apiVersion": API_VERSION,
                "kind": "ModelPlacement",
                "metadata": {"name": name, "namespace": MODELS},
                "spec": body,
            }
        )

    @contextmanager
    def placed(self, name: str, models: dict[str, str], **spec: Any) -> Iterator[str]:
        """The same for the length of a block; afterwards it and its pods are gone."""
        self.place(name, models, **spec)
        try:
            yield name
        finally:
            self.remove(name)

    def remove(self, name: str) -> None:
        """Delete a placement; returns when its pods are gone."""
        self.lab.api.delete(API_VERSION, "ModelPlacement", name, MODELS)
        self.until(f"no pods of {name}", lambda: not self.engines(name))

    def status(self, name: str) -> Object:
        found = self.lab.api.find(API_VERSION, "ModelPlacement", name, MODELS) or {}
        status: Object = found.get("status", {})
        return status

    def condition(self, name: str, kind: str) -> Object:
        """One condition of a placement, empty where it has none."""
        conditions = self.status(name).get("conditions", ())
        return next((each for each in conditions if each["type"] == kind), {})

    def replicas(self, name: str) -> dict[str, Object]:
        """`model/index` -> the replica's status."""
        return {
            f"{model['name']}/{replica['index']}": replica
            for model in self.status(name).get("models", ())
            for replica in model.get("replicas", ())
        }

    def is_ready(self, name: str) -> bool:
        status = self.status(name)
        found = self.lab.api.find(API_VERSION, "ModelPlacement", name, MODELS) or {"metadata": {}}
        fresh = status.get("observedGeneration") == found["metadata"].get("generation")
        return fresh and self.condition(name, "Ready").get("status") == "True"

    def await_ready(self, *names: str, seconds: float = PATIENCE) -> None:
        self.until(f"{names} Ready", lambda: all(self.is_ready(name) for name in names), seconds)

    # ------------------------------------------------------------------------------------------------------- engines
    def engines(self, placement: str = "") -> dict[str, Object]:
        """Engine pods by name."""
        labels = f"{ROLE_LABEL}=engine" + (f",cotenant.dev/placement={placement}" if placement else "")
        return {pod["metadata"]["name"]: pod for pod in self.lab.api.list("v1", "Pod", MODELS, labels=labels)}

    def models_of(self, pod: str) -> Object:
        """What an engine answers to /v1/models: the GPUs and device nodes it sees, its arguments."""
        path = f"api/v1/namespaces/{MODELS}/pods/{pod}:8000/proxy/v1/models"
        text = self.lab.kubectl("get", "--raw", f"/{path}")
        answer: Object = json.loads(text)["data"][0]
        return answer

    def order(self, pod: str, words: str) -> None:
        """Tell an engine what to do, or with '' that it is to do nothing special."""
        folder = self.lab.directory / "card" / "orders"
        folder.mkdir(exist_ok=True)
        (folder / pod).write_text(words)

    def fault(self, placement: str, model: str) -> Object:
        """What its status says went wrong last with a model; empty where nothing did."""
        found = [each.get("lastFault") for each in self.status(placement).get("models", ()) if each["name"] == model]
        return found[0] or {} if found else {}

    @contextmanager
    def endings(self) -> Iterator[dict[str, Object]]:
        """Engine pod -> how its container ended, as its kubelet said, also when the pod is gone right after."""
        found: dict[str, Object] = {}
        version = self.lab.api.request("GET", f"api/v1/namespaces/{MODELS}/pods")["metadata"]["resourceVersion"]
        stop = threading.Event()

        def follow() -> None:
            for _, pod in self.lab.api.watch("v1", "Pod", MODELS, seconds=300, resource_version=version):
                for status in pod.get("status", {}).get("containerStatuses", ()):
                    if ended := status["state"].get("terminated"):
                        found[pod["metadata"]["name"]] = ended
                if stop.is_set():
                    return

        threading.Thread(target=follow, daemon=True).start()
        try:
            yield found
        finally:
            stop.set()

    # ------------------------------------------------------------------------------------------------------ the node
    def pods(self, role: str) -> dict[str, Object]:
        """Our pods of a role (`holder`, `preflight`) by name."""
        return {p["metadata"]["name"]: p for p in self.lab.api.list("v1", "Pod", SYSTEM, labels=f"{ROLE_LABEL}={role}")}

    def gpu_node(self) -> Object:
        """What the agent says."""
        found: Object = (self.lab.api.find(API_VERSION, "GPUNode", NODE) or {}).get("status", {})
        return found

    def gpus(self) -> dict[str, Object]:
        """The same per GPU, by UUID."""
        return {gpu["uuid"]: gpu for gpu in self.gpu_node().get("gpus", ())}

    def kill_container(self, namespace: str, component: str, container: str) -> None:
        """`kill -9` of one container's first process, as the machine would; the kubelet starts it again."""
        status = self._container(namespace, component, container)
        self.lab.kill_container(status["containerID"].removeprefix("containerd://"))

    def restarts(self, namespace: str, component: str, container: str) -> int:
        """How often a container that runs now was started again."""
        status = self._container(namespace, component, container)
        return int(status["restartCount"]) if "running" in status["state"] else -1

    def _container(self, namespace: str, component: str, container: str) -> Object:
        (pod,) = self.lab.api.list("v1", "Pod", namespace, labels=f"app.kubernetes.io/component={component}")
        found: Object = next(s for s in pod["status"]["containerStatuses"] if s["name"] == container)
        return found

    def node_is_ready(self) -> bool:
        return is_ready(self.lab.api.get("v1", "Node", NODE))

    def forget_proofs(self) -> None:
        """Delete the preflight pods, so that the node is proven anew."""
        for name in self.pods("preflight"):
            self.lab.api.delete("v1", "Pod", name, SYSTEM, grace=0)

    def calm(self) -> None:
        """No orders to anybody."""
        for path in (self.lab.directory / "card").glob("orders/*"):
            path.unlink()

    def steady(self, seconds: float) -> None:
        """Give things time to go wrong."""
        time.sleep(seconds)

    # ---------------------------------------------------------------------------------------------------- pods of others
    def foreign(
        self, name: str, *, limits: Object | None = None, uuid: str = "", use: int = 0, style: str = "cdi-device-plugin"
    ) -> Object:
        """A pod of somebody else in namespace default: with a request, or given a GPU by name, using memory of it."""
        given = inject(style, [uuid], "work") if uuid else None
        script = "import time\nfrom tests.node.engine import Cards\ncards = Cards()\n"
        script += f"card = cards.visible()[0]\ncards.use(card['uuid'], {use})\n" if use else ""
        spec: Object = {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "containers": [
                {
                    "name": "work",
                    "image": images.ENGINE,
                    "command": ["python3", "-c", script + "time.sleep(3600)"],
                    "resources": {"limits": limits or {}},
                    "env": given.env_list if given else [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"}],
                }
            ],
        }
        if given and given.runtime_class:
            spec["runtimeClassName"] = given.runtime_class
        return self.lab.api.create({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})

    def phase(self, name: str, namespace: str = "default") -> str:
        pod = self.lab.api.find("v1", "Pod", name, namespace)
        return pod["status"]["phase"] if pod else "gone"

    # --------------------------------------------------------------------------------------------------------- waiting
    def until(self, what: str, done: Callable[[], T], seconds: float = PATIENCE) -> T:
        """What `done` gives once that is true; AssertionError with the state of things if it takes too long."""
        deadline = time.monotonic() + seconds
        while not (found := done()):
            if time.monotonic() > deadline:
                raise AssertionError(f"{what}: not after {seconds:g} s\n{self.picture()}")
            time.sleep(0.3)
        return found

    def picture(self) -> str:
        """The state of things, for a failed test."""
        log = self.lab.kubectl("logs", "-n", SYSTEM, "deploy/cotenant-controller", "--tail=30")
        return "\n".join(
            [
                self.lab.kubectl("get", "pods", "-A", "-o", "wide"),
                self.lab.kubectl("get", "modelplacements", "-A", "-o", "yaml"),
                self.lab.kubectl("get", "gpunodes", "-o", "yaml"),
                f"the controller's log:\n{log}",
            ]
        )
