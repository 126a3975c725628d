"""Nodes, GPUs and engines by vLLM's rules, in seconds of simulated time: what the agents see and the kubelets report."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, field
from random import Random

from cotenant.controller.sources import GPU_NODES, NODES, PLACEMENTS, PODS, SERVICES
from cotenant.core.estimate.modelconfig import ModelConfig
from cotenant.core.ledger import CONTEXT, CONTEXT_TENSOR_PARALLEL
from cotenant.core.share import GIB
from tests.core.corpus import REFUSED, RUNS, STARTS, log
from tests.soak.store import Body, Key, Store, stamp

SIZES = (24 * GIB, 80 * GIB, 96 * GIB, 140 * GIB)
EVICT_AFTER = 300.0
"""Seconds a node is lost until Kubernetes asks its pods to leave."""
NOTICE_AFTER = 40.0


@dataclass(slots=True)
class Truth:
    """What a model really needs; nobody tells the controller."""

    base: int
    """Weights, activations and graphs, bytes per GPU."""
    per_token: int
    overrun: int
    seconds: float
    flaw: str = ""
    """`bad-flag`: it never starts. `secret`: not before somebody made it."""


@dataclass(slots=True)
class Engine:
    """A process tree on GPUs: it may outlive its pod object on a node nobody reaches."""

    key: Key
    uid: str
    node: str
    gpus: tuple[str, ...]
    share: int
    used: int
    began: float
    ready_at: float
    dies: tuple[float, int, str] | None = None
    """(when, exit code, log)."""
    serving: bool = False
    unready_until: float = 0.0
    """Its readiness probe fails until then; it serves on."""


@dataclass(slots=True)
class Gpu:
    uuid: str
    node: str
    index: int
    memory: int
    health: str = "Healthy"
    strangers: dict[int, int] = field(default_factory=dict)
    holder: str | None = None
    """The pod the device plugin gave it to."""


@dataclass(slots=True)
class Machine:
    name: str
    up: bool = True
    since: float = 0.0
    noticed: bool = True
    """Whether the Node object says so already."""
    cordoned: bool = False
    silent: bool = False
    """Its agent reports nothing new."""
    silent_since: float = 0.0
    proof: str = "good"
    """What a preflight sees here: `good` (its GPU), `blind` (none), `leaky` (a neighbour's too), `slow` (its image is not there)."""


class Physics:
    """Everything that is not the controller."""

    def __init__(self, store: Store, rng: Random, now: float) -> None:
        self.store, self.rng, self.now = store, rng, now
        self.machines: dict[str, Machine] = {}
        self._sizes: dict[str, int] = {}
        self.gpus: dict[str, Gpu] = {}
        self.engines: dict[str, Engine] = {}
        """By pod uid."""
        self.logs: dict[str, str] = {}
        """Of ended containers, by pod uid."""
        self.truths: dict[tuple[str, str], Truth] = {}
        """By (placement, model)."""
        self.copies: set[str] = set()
        self.full: set[str] = set()
        """Namespaces in which the API server refuses to create pods."""
        """Names of pods a person made by hand: what they do is not ours to answer for."""
        self.configs: tuple[ModelConfig | str, ...] = ()
        """What models' configs say, or why they cannot be read; empty: no config is known."""
        self.injection_version = ""
        """Of the cluster's RuntimeClass and ClusterPolicy."""
        self.leaving: dict[str, tuple[float, str]] = {}
        """Pod uid -> when its last process is gone, and on which node."""

    def config(self, uri: str) -> ModelConfig | str | None:
        """What the config of a model says; the same for the same model."""
        return self.configs[zlib.crc32(uri.encode()) % len(self.configs)] if self.configs else None

    # ------------------------------------------------------------------------------------------------------- machines
    def add_machine(self, name: str, gpus: int, memory: int) -> None:
        self.machines[name] = Machine(name, since=self.now)
        first = self._sizes.setdefault(name, memory)
        other = "" if memory == first else f"-{memory // GIB}"  # another machine by that name has GPUs of its own
        for index in range(gpus):
            gpu = Gpu(f"GPU-{name}-{index}{other}", name, index, memory)
            self.gpus[gpu.uuid] = gpu
        labels = {"cotenant.dev/managed": "true", "nvidia.com/gpu.product": f"P{memory // GIB}", "zone": name[-1]}
        self.store.create(NODES, {"metadata": {"name": name, "labels": labels}}, self.now)
        self._tell_node(self.machines[name])
        self.report(self.machines[name])

    def remove_machine(self, name: str) -> None:
        del self.machines[name]
        self.gpus = {uuid: gpu for uuid, gpu in self.gpus.items() if gpu.node != name}
        self.engines = {uid: engine for uid, engine in self.engines.items() if engine.node != name}
        self.store.drop(NODES, ("", name))
        self.store.drop(GPU_NODES, ("", name))
        for pod in self.store.all(PODS):
            if pod["spec"].get("nodeName") == name:
                self._remove(pod)  # the pod garbage collector

    def _tell_node(self, machine: Machine) -> None:
        body = self.store.get(NODES, ("", machine.name))
        assert body is not None
        condition = {"type": "Ready", "status": str(machine.up), "lastTransitionTime": stamp(self.now)}
        status = {"conditions": [condition], "allocatable": {"cpu": "64", "memory": "512Gi"}}
        self.store.change(NODES, body, status=status, spec={"unschedulable": machine.cordoned})
        machine.noticed = True

    def lose(self, machine: Machine) -> None:
        machine.up, machine.since, machine.noticed = False, self.now, False

    def back(self, machine: Machine, rebooted: bool) -> None:
        machine.up, machine.since, machine.noticed = True, self.now, False
        if rebooted:
            for uid in [uid for uid, engine in self.engines.items() if engine.node == machine.name]:
                self._end(self.engines.pop(uid), 137, "", "Error")

    def cordon(self, machine: Machine, cordoned: bool) -> None:
        machine.cordoned = cordoned
        self._tell_node(machine)

    # --------------------------------------------------------------------------------------------------------- agents
    def used(self, gpu: Gpu) -> int:
        engines = sum(engine.used for engine in self.engines.values() if gpu.uuid in engine.gpus)
        return engines + sum(gpu.strangers.values())

    def report(self, machine: Machine) -> None:
        """What the agent of one node sees now."""
        if machine.silent or not machine.up:
            return
        gpus = []
        for gpu in self.gpus.values():
            if gpu.node != machine.name:
                continue
            here = [engine for engine in self.engines.values() if gpu.uuid in engine.gpus]
            gpus.append(
                {
                    "uuid": gpu.uuid,
                    "index": gpu.index,
                    "product": f"P{gpu.memory // GIB}",
                    "memory": {"total": gpu.memory, "used": min(gpu.memory, self.used(gpu))},
                    "health": gpu.health,
                    "holder": gpu.holder,
                    "tenants": [{"namespace": e.key[0], "pod": e.key[1], "used": e.used} for e in here],
                    "strangers": [{"pid": p, "command": "python", "used": u} for p, u in gpu.strangers.items()],
                }
            )
        body = {"metadata": {"name": machine.name}, "status": {"agentVersion": "1", "gpus": gpus}}
        before = self.store.get(GPU_NODES, ("", machine.name))
        if before is None:
            self.store.create(GPU_NODES, body, self.now)
        else:
            self.store.change(GPU_NODES, before, status=body["status"])

    # -------------------------------------------------------------------------------------------------------- passing
    def pass_time(self, seconds: float) -> None:
        """Everything that happens by itself, second by second where something does."""
        until = self.now + seconds
        while self.now < until:
            self.now = min(until, max(self.now + 0.5, min(self._next(), until)))
            self._tick()
        for machine in self.machines.values():
            self.report(machine)

    def pending(self) -> bool:
        """Whether anything is under way by itself."""
        return self._next() < float("inf") or self._unstarted()

    def _unstarted(self) -> bool:
        return any(
            self._machine_of(pod) is not None
            and not pod["status"].get("settled")
            and pod["metadata"]["uid"] not in self.engines
            for pod in self.store.all(PODS)
            if pod["metadata"]["labels"].get("cotenant.dev/role") == "engine"
        )

    def _next(self) -> float:
        # a pod that was force-deleted, its engine ended by a reboot since: nobody leaves any more
        there = self.engines.keys() | {pod["metadata"]["uid"] for pod in self.store.all(PODS)}
        self.leaving = {uid: when for uid, when in self.leaving.items() if uid in there}
        times = [at for at, node in self.leaving.values() if node in self.machines and self.machines[node].up]
        for engine in self.engines.values():
            machine = self.machines.get(engine.node)
            if machine is None or not machine.up:
                continue
            if engine.dies:
                times.append(engine.dies[0])
            elif not engine.serving:
                times.append(engine.ready_at)
            elif engine.unready_until:
                times.append(engine.unready_until)
        for machine in self.machines.values():
            if not machine.noticed:
                times.append(machine.since + NOTICE_AFTER)
        return min((time for time in times), default=float("inf"))

    def _machine_of(self, pod: Body) -> Machine | None:
        """The reachable machine a pod is bound to, or would be."""
        name = pod["spec"].get("nodeName") or _asked(pod)
        machine = self.machines.get(name)
        return machine if machine is not None and machine.up else None

    def _tick(self) -> None:
        for machine in self.machines.values():
            late = self.now >= machine.since + (NOTICE_AFTER if not machine.up else 5)
            if not machine.noticed and late:
                self._tell_node(machine)
                self._unready(machine)
        self._collect_garbage()
        for pod in self.store.all(PODS):
            self._kubelet(pod)
        for engine in list(self.engines.values()):
            self._live(engine)

    def _unready(self, machine: Machine) -> None:
        """The node controller: pods of a lost node are not ready; of one that came back they are again."""
        for pod in self.store.all(PODS):
            engine = self.engines.get(pod["metadata"]["uid"])
            if pod["spec"].get("nodeName") == machine.name and engine is not None and engine.serving:
                self._status(pod, "Running", ready=machine.up and not engine.unready_until)

    def _collect_garbage(self) -> None:
        owners = {body["metadata"]["uid"] for body in self.store.all(PLACEMENTS)}
        for source in (PODS, SERVICES):
            for body in self.store.all(source):
                uids = [
                    o["uid"] for o in body["metadata"].get("ownerReferences") or () if o["kind"] == "ModelPlacement"
                ]
                if uids and not owners & set(uids):
                    if source == PODS:
                        self.ask_to_leave(body)
                    else:
                        self.store.drop(source, (body["metadata"]["namespace"], body["metadata"]["name"]))

    def ask_to_leave(self, pod: Body, grace: int | None = None) -> bool:
        """DELETE: True when the pod is gone at once."""
        uid = pod["metadata"]["uid"]
        ended = pod["status"].get("phase") in ("Succeeded", "Failed")
        if grace == 0 or not pod["spec"].get("nodeName") or (ended and uid not in self.engines):
            self._remove(pod)
            return True
        if "deletionTimestamp" not in pod["metadata"]:
            meta = {**pod["metadata"], "deletionTimestamp": stamp(self.now), "deletionGracePeriodSeconds": 30}
            self.store.put(PODS, {**pod, "metadata": meta})
            self.leaving[uid] = (self.now + self.rng.choice((1.0, 2.0, 10.0, 32.0)), pod["spec"]["nodeName"])
        return False

    def _remove(self, pod: Body) -> None:
        meta = pod["metadata"]
        self.leaving.pop(meta["uid"], None)
        for gpu in self.gpus.values():
            if gpu.holder == meta["name"]:
                gpu.holder = None
        self.store.drop(PODS, (meta["namespace"], meta["name"]))

    # ------------------------------------------------------------------------------------------------------- kubelets
    def _kubelet(self, pod: Body) -> None:
        uid = pod["metadata"]["uid"]
        machine = self._machine_of(pod)
        if machine is None:
            return
        if uid in self.leaving:
            if self.now >= self.leaving[uid][0]:
                engine = self.engines.pop(uid, None)
                self._remove(pod)
                if engine is not None:
                    self._disturb(engine)
            return
        if (role := pod["metadata"]["labels"].get("cotenant.dev/role")) in ("holder", "preflight"):
            (self._hold if role == "holder" else self._prove)(pod, machine)
            return
        if not pod["spec"].get("nodeName"):
            if machine.cordoned:
                self._blocked(pod, "Unschedulable", "1 node(s) were unschedulable")
                return
            pod = self.store.put(PODS, {**pod, "spec": {**pod["spec"], "nodeName": machine.name}})
        if uid not in self.engines and pod["status"].get("phase", "Pending") == "Pending":
            self._start(pod)

    def _hold(self, pod: Body, machine: Machine) -> None:
        if pod["status"].get("phase") == "Running":
            return
        free = [g for g in self.gpus.values() if g.node == machine.name and g.holder is None and g.health == "Healthy"]
        if not free or machine.cordoned:
            self._blocked(pod, "Unschedulable", "Insufficient nvidia.com/gpu")
            return
        self.rng.choice(free).holder = pod["metadata"]["name"]
        self.store.put(PODS, {**pod, "spec": {**pod["spec"], "nodeName": machine.name}, "status": {"phase": "Running"}})

    def _prove(self, pod: Body, machine: Machine) -> None:
        """A preflight: what it saw is its termination message."""
        if pod["status"].get("phase") in ("Succeeded", "Failed"):
            return
        if machine.cordoned:
            self._blocked(pod, "Unschedulable", "1 node(s) were unschedulable")
            return
        if machine.proof == "slow":
            self._blocked(pod, "ImagePullBackOff", "Back-off pulling image", "preflight")
            return
        wanted = pod["metadata"]["annotations"]["cotenant.dev/preflight-gpu"]
        others = [gpu.uuid for gpu in self.gpus.values() if gpu.node == machine.name]
        seen = {"good": [wanted], "blind": [], "leaky": others}[machine.proof]
        done = {"exitCode": 0, "reason": "Completed", "message": "\n".join(seen), "finishedAt": stamp(self.now)}
        status = {"phase": "Succeeded", "containerStatuses": [{"name": "preflight", "state": {"terminated": done}}]}
        self.store.put(PODS, {**pod, "spec": {**pod["spec"], "nodeName": machine.name}, "status": status})

    def _blocked(self, pod: Body, reason: str, message: str, container: str = "engine") -> None:
        if reason == "Unschedulable":
            condition = {"type": "PodScheduled", "status": "False", "reason": reason, "message": message}
            self.store.change(PODS, pod, status={"phase": "Pending", "conditions": [condition], "settled": True})
            return
        waiting = {"name": container, "state": {"waiting": {"reason": reason, "message": message}}}
        self.store.change(PODS, pod, status={"phase": "Pending", "containerStatuses": [waiting], "settled": True})

    def _start(self, pod: Body) -> None:
        meta = pod["metadata"]
        labels = meta["labels"]
        truth = self.truths.get((labels["cotenant.dev/placement"], labels["cotenant.dev/model"]))
        if truth is None:
            truth = Truth(GIB, 1024, GIB, 30.0)
        if truth.flaw == "secret":
            self._blocked(pod, "CreateContainerConfigError", 'secret "hf-token" not found')
            return
        given = json.loads(meta["annotations"]["cotenant.dev/allocation"])
        gpus = tuple(given["gpus"])
        if gone := [uuid for uuid in gpus if uuid not in self.gpus]:  # the node came back with others
            self._blocked(
                pod, "CreateContainerError", f"unresolvable CDI device k8s.device-plugin.nvidia.com/gpu={gone[0]}"
            )
            return
        args = pod["spec"]["containers"][0]["args"]
        context = CONTEXT if len(gpus) == 1 else CONTEXT_TENSOR_PARALLEL
        share = max(
            int(self.gpus[uuid].memory * float(_flag(args, "--gpu-memory-utilization") or 0.92)) for uuid in gpus
        )
        engine = Engine(
            (meta["namespace"], meta["name"]),
            meta["uid"],
            given["node"],
            gpus,
            share,
            context,
            self.now,
            self.now + truth.seconds,
        )
        free = min(self.gpus[uuid].memory - self.used(self.gpus[uuid]) for uuid in gpus) - context
        self.engines[meta["uid"]] = engine
        self._status(pod, "Running", ready=False)
        if truth.flaw == "bad-flag":
            engine.dies = (self.now + 5, 2, log("bad-flag"))
        elif free < share:
            engine.dies = (self.now + 12, 1, _no_room(free, self.gpus[gpus[0]].memory, share))
        else:
            engine.used = context + min(truth.base, share)
            if text := _too_small(truth, share, args):
                engine.dies = (self.now + truth.seconds, 1, text)

    def _live(self, engine: Engine) -> None:
        machine = self.machines.get(engine.node)
        if machine is None or not machine.up:
            return
        pod = self.store.get(PODS, engine.key)
        if pod is None or pod["metadata"]["uid"] != engine.uid:
            # a pod that was force-deleted while its node was away: the kubelet kills what it no longer finds
            if engine.uid not in self.leaving:
                self.leaving[engine.uid] = (self.now + 5, engine.node)
            if self.now >= self.leaving[engine.uid][0]:
                del self.leaving[engine.uid], self.engines[engine.uid]
                self._disturb(engine)
            return
        if engine.dies and self.now >= engine.dies[0]:
            del self.engines[engine.uid]
            _, code, text = engine.dies
            self._end(engine, code, text, "OOMKilled" if text == "OOMKilled" else "Completed" if code == 0 else "Error")
            self._disturb(engine)
        elif not engine.serving and engine.dies is None and self.now >= engine.ready_at:
            engine.serving = True
            labels = pod["metadata"]["labels"]
            truth = self.truths.get((labels["cotenant.dev/placement"], labels["cotenant.dev/model"]))
            room = min(gpu.memory - self.used(gpu) for uuid in engine.gpus if (gpu := self.gpus.get(uuid)))
            if engine.used + room < engine.share:
                engine.serving, engine.dies = False, (self.now + 0.5, 1, log("kv-allocation"))
                return
            # beyond its share nobody gets more than there is
            engine.used = min(engine.share + (truth.overrun if truth else GIB), engine.used + room)
            self._status(pod, "Running", ready=True)

        elif engine.serving and engine.unready_until and self.now >= engine.unready_until:
            engine.unready_until = 0.0
            self._status(pod, "Running", ready=True)

    def flap(self, engine: Engine) -> None:
        """Its readiness probe fails for a while, as under load."""
        pod = self.store.get(PODS, engine.key)
        if pod is not None and pod["metadata"]["uid"] == engine.uid:
            engine.unready_until = self.now + 30
            self._status(pod, "Running", ready=False)

    def _disturb(self, gone: Engine) -> None:
        """Memory given back beside a start: vLLM's profile may see more free than before, and dies of it."""
        for engine in self.engines.values():
            if (
                set(engine.gpus) & set(gone.gpus)
                and not engine.serving
                and engine.dies is None
                and self.rng.random() < 0.7
            ):
                engine.dies = (self.now + 3, 1, log("profile-disturbed"))

    def _end(self, engine: Engine, code: int, text: str, reason: str) -> None:
        self.logs[engine.uid] = text
        pod = self.store.get(PODS, engine.key)
        if pod is None or pod["metadata"]["uid"] != engine.uid:
            return
        done = {"exitCode": code, "reason": reason, "message": text[-2048:], "finishedAt": stamp(self.now)}
        done["startedAt"] = stamp(engine.began)
        # the kubelet moves lastTransitionTime only when Ready changes: a start that failed never was ready
        since = self.now if engine.serving else self.now - 1e6
        status = {
            "phase": "Succeeded" if code == 0 else "Failed",
            "conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": stamp(since)}],
            "containerStatuses": [{"name": "engine", "state": {"terminated": done}}],
            "settled": True,
        }
        self.store.change(PODS, pod, status=status)

    def _status(self, pod: Body, phase: str, *, ready: bool) -> None:
        engine = self.engines[pod["metadata"]["uid"]]
        # the kubelet says Ready=False before the container starts, and moves the time only when that changes
        since = stamp(self.now) if engine.serving else pod["metadata"]["creationTimestamp"]
        condition = {"type": "Ready", "status": str(ready), "lastTransitionTime": since}
        running = {"name": "engine", "state": {"running": {"startedAt": stamp(engine.began)}}}
        status = {"phase": phase, "conditions": [condition], "containerStatuses": [running]}
        self.store.change(PODS, pod, status=status)

    # ------------------------------------------------------------------------------------------------------- mishaps
    def crash(self, engine: Engine) -> str:
        """Something kills an engine; what."""
        if self.rng.random() < 0.15:
            engine.dies, name = (self.now + 0.5, 137, "OOMKilled"), "OOMKilled"
        elif engine.serving:
            name = self.rng.choice(sorted(RUNS))
            engine.dies = (self.now + 0.5, 0, log(name))
        else:
            name = self.rng.choice(sorted(set(STARTS) - set(REFUSED)))
            engine.dies = (self.now + 0.5, 1, log(name))
        return name


def _asked(pod: Body) -> str:
    terms = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    return str(terms["nodeSelectorTerms"][0]["matchFields"][0]["values"][0])


def _flag(args: list[str], name: str) -> str | None:
    for at, argument in enumerate(args):
        word, equals, value = argument.partition("=")
        if word == name:
            return value if equals else args[at + 1]
    return None


def _gib(amount: int) -> str:
    return f"{amount / GIB:.2f}"


def _no_room(free: int, total: int, share: int) -> str:
    return (
        f"(EngineCore pid=61) ValueError: Free memory on device cuda:0 ({_gib(free)}/{_gib(total)} GiB) on startup is less "
        f"than desired GPU memory utilization (0.5, {_gib(share)} GiB). Decrease GPU memory utilization.\n"
    )


def _too_small(truth: Truth, share: int, args: list[str]) -> str:
    """vLLM's words where the KV cache holds not one sequence; '' where it does."""
    length = int(_flag(args, "--max-model-len") or 32768)
    kv, needed = share - truth.base, length * truth.per_token
    pinned = _flag(args, "--kv-cache-memory-bytes")
    kv = int(pinned) if pinned else kv
    if kv <= 0:
        return f"Available KV cache memory: {_gib(kv)} GiB\n" + log("no-kv-memory").replace("-63.09", _gib(kv))
    if kv >= needed:
        return ""
    return (
        f"(EngineCore pid=61) ValueError: To serve at least one request with the model's max seq len ({length}), "
        f"({_gib(needed)} GiB KV cache is needed, which is larger than the available KV cache memory ({_gib(kv)} GiB). "
        f"Based on the available memory, the estimated maximum model length is {kv // truth.per_token}.\n"
    )
