"""A small world for tests of the core: placements, GPUs and pods in a line each, and a cluster that obeys every decision."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

from cotenant.core.decision import Decision
from cotenant.core.names import ALLOCATION_ANNOTATION, HASH_ANNOTATION, MODEL_LABEL, PLACEMENT_LABEL, REPLICA_LABEL
from cotenant.core.reconcile import reconcile
from cotenant.core.share import GIB, parse_percent, parse_share
from cotenant.core.snapshot import (
    Allocation,
    Device,
    Ended,
    EngineImage,
    GPUNode,
    Model,
    Node,
    Placement,
    Pod,
    Policy,
    Snapshot,
    TenantReading,
)
from tests.core import corpus

H100 = "NVIDIA-H100-80GB-HBM3"
POLICY = Policy(engines=(EngineImage("vllm", "example.org/vllm:1", "0.33.0"),), preflight=False, reserve=False)


def model(name: str, share: str = "40%", **fields: Any) -> Model:
    return Model(name, f"hf://org/{name}", parse_share(share), name, **fields)


def placement(
    name: str, *models: Model, headroom: str | None = None, namespace: str = "default", **fields: Any
) -> Placement:
    kept = None if headroom is None else 0 if headroom == "0%" else parse_percent(headroom)
    fields = {"uid": f"uid-{namespace}-{name}", "generation": 1, "created": 1.0} | fields
    return Placement(namespace=namespace, name=name, models=models, headroom=kept, **fields)


def node(name: str, gpus: int = 1, memory: int = 80 * GIB, product: str = H100, **fields: Any) -> tuple[Node, GPUNode]:
    labels = (("cotenant.dev/managed", "true"), ("nvidia.com/gpu.product", product))
    devices = tuple(Device(f"{name}-g{index}", name, index, product, memory) for index in range(gpus))
    return Node(name, labels=labels, uid=f"uid-{name}", **fields), GPUNode(name, devices)


@dataclass
class Cluster:
    """Obeys every decision at once; engines come up and die when told. No API server, no time of its own."""

    nodes: list[tuple[Node, GPUNode]]
    placements: dict[str, Placement] = field(default_factory=dict)
    pods: dict[tuple[str, str], Pod] = field(default_factory=dict)
    policy: Policy = POLICY
    now: float = 1000.0
    serial: int = 0
    log: list[str] = field(default_factory=list)
    """What was created and deleted, in order."""
    lingering: int = 0
    """Bytes on every GPU that a pod of ours which is gone has not given back yet."""
    stripped: dict[tuple[str, str], Allocation] = field(default_factory=dict)
    """What pods hold whose annotations somebody took away."""
    hidden: int = 0
    """Bytes on every GPU that no process accounts for."""
    excess: dict[str, int] = field(default_factory=dict)
    """Pod -> bytes it uses beyond its share and what every engine takes."""

    def apply(self, *placements: Placement) -> Cluster:
        for wish in placements:
            before = self.placements.get(wish.name)
            generation = before.generation + 1 if before else 1
            status = before.status if before else wish.status
            self.placements[wish.name] = replace(wish, generation=generation, status=status)
        return self

    def snapshot(self) -> Snapshot:
        reports = tuple(self._report(report) for _, report in self.nodes)
        return Snapshot(
            now=self.now,
            policy=self.policy,
            placements=tuple(self.placements.values()),
            nodes=tuple(node for node, _ in self.nodes),
            gpu_nodes=reports,
            pods=tuple(self.pods.values()),
        )

    def _report(self, report: GPUNode) -> GPUNode:
        devices = []
        for device in report.devices:
            tenants = tuple(
                TenantReading(pod.namespace, pod.name, pod.allocation.bytes + GIB + self.excess.get(pod.name, 0))
                for pod in self.pods.values()
                if pod.ended is None and pod.allocation and device.uuid in pod.allocation.gpus
            )
            tenants += tuple(
                TenantReading(*key, given.bytes + GIB)
                for key, given in self.stripped.items()
                if device.uuid in given.gpus and key in self.pods and self.pods[key].allocation is None
            )
            if self.lingering:
                tenants += (TenantReading("default", "gone", self.lingering),)
            used = sum(t.used for t in tenants) + sum(s.used for s in device.strangers) + self.hidden
            devices.append(replace(device, tenants=tenants, used=used))
        return replace(report, devices=tuple(devices))

    def strip_allocation(self, name: str) -> None:
        """Somebody takes the allocation off a pod's annotations."""
        pod = self.pods["default", name]
        assert pod.allocation is not None
        self.stripped["default", name] = pod.allocation
        self.pods["default", name] = replace(pod, allocation=None)

    def run(self, passes: int = 40, seconds: float = 60.0, *, flawed: str = "") -> Cluster:
        """Passes while time goes by; what starts is ready before the next one. Starts with the flag `flawed` die of a bad argument."""
        for _ in range(passes):
            self.step()
            for pod in list(self.pods.values()):
                if (
                    flawed
                    and not pod.ready
                    and pod.ended is None
                    and pod.allocation
                    and pod.allocation.utilization == flawed
                ):
                    self.die(pod.name, 2, corpus.log("bad-flag"))
            self.ready()
            self.now += seconds
        return self

    def step(self, refusals: tuple[tuple[str, str, str], ...] = ()) -> Decision:
        """One pass, and all of it done but the creates of pods that are refused."""
        decision = reconcile(replace(self.snapshot(), refusals=refusals))
        for delete in decision.deletes:
            if (pod := self.pods.get((delete.namespace, delete.name))) and pod.uid == delete.uid:
                del self.pods[delete.namespace, delete.name]
                self.log.append(f"-{delete.name} {delete.reason}")
        refused = {pod for _, pod, _ in refusals}
        for create in decision.creates:
            if create.manifest["metadata"]["name"] not in refused:
                self._create(create.manifest)
        for status in decision.statuses:
            self._write(status.name, status.status)
        return decision

    def settle(self, steps: int = 60, *, serve: bool = True) -> Cluster:
        """Passes until nothing changes; what starts is ready before the next pass."""
        for _ in range(steps):
            decision = self.step()
            if serve:
                self.ready()
            if not (decision.creates or decision.deletes or decision.statuses):
                return self
        raise AssertionError(f"no rest after {steps} passes: {self.log[-10:]}")

    def ready(self, *names: str) -> None:
        for key, pod in list(self.pods.items()):
            if pod.ended is None and not pod.ready and (not names or pod.name in names):
                self.pods[key] = replace(
                    pod,
                    phase="Running",
                    ready=True,
                    was_ready=True,
                    ready_since=self.now,
                    node=pod.allocation and pod.allocation.node,
                )

    def die(self, name: str, exit_code: int = 0, log: str = "") -> None:
        key = ("default", name)
        phase = "Succeeded" if exit_code == 0 else "Failed"
        ended = Ended(exit_code, "Completed" if exit_code == 0 else "Error", "", self.now, log)
        self.pods[key] = replace(self.pods[key], phase=phase, ready=False, ended=ended)

    def phases(self, name: str) -> list[str]:
        return [replica["phase"] for replica in self.said(name)]

    def said(self, name: str) -> list[dict[str, Any]]:
        """What the status says of every replica."""
        raw = json.loads(self.placements[name].status.raw)
        return [replica for entry in raw["models"] for replica in entry["replicas"]]

    def flags(self) -> dict[str, str]:
        """--gpu-memory-utilization of every pod that serves."""
        return {pod.name: pod.allocation.utilization for pod in self.pods.values() if pod.allocation and pod.ready}

    def replica(self, name: str) -> dict[str, Any]:
        """What the status says of the first replica of the first model."""
        return self.said(name)[0]

    def condition(self, name: str, kind: str) -> dict[str, str]:
        raw = json.loads(self.placements[name].status.raw)
        return next((c for c in raw["conditions"] if c["type"] == kind), {})

    def _create(self, manifest: dict[str, Any]) -> None:
        meta = manifest["metadata"]
        key = (meta["namespace"], meta["name"])
        assert key not in self.pods, f"{key} twice"
        allocation = json.loads(meta["annotations"][ALLOCATION_ANNOTATION])
        self.serial += 1
        self.pods[key] = Pod(
            *key,
            uid=f"pod-{self.serial}",
            placement=meta["labels"][PLACEMENT_LABEL],
            owner_uid=meta["ownerReferences"][0]["uid"],
            model=meta["labels"][MODEL_LABEL],
            replica=int(meta["labels"][REPLICA_LABEL]),
            created=self.now,
            allocation=Allocation(**{**allocation, "gpus": tuple(allocation["gpus"])}),
            hash=meta["annotations"][HASH_ANNOTATION],
            args=tuple(manifest["spec"]["containers"][0]["args"]),
        )
        self.log.append(f"+{meta['name']}")

    def _write(self, name: str, status: dict[str, Any]) -> None:
        from cotenant.api.placement import read_status

        self.placements[name] = replace(self.placements[name], status=read_status(status))
