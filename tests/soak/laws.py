"""What must always hold, seen from the world itself and not from any controller's view of it."""

from __future__ import annotations

import json
from typing import Any

from cotenant.controller.sources import PLACEMENTS, PODS, SERVICES
from cotenant.core.estimate.modelconfig import ModelConfig
from cotenant.core.share import GIB, Utilization, gib, parse_percent, parse_quantity
from cotenant.core.snapshot import Policy
from cotenant.core.vllm import utilization_of
from tests.soak.physics import Physics

Body = dict[str, Any]


class Broken(Exception):
    """A law was broken."""


def _engines(physics: Physics) -> list[tuple[Body, dict[str, Any]]]:
    """Pods of ours that hold or will hold memory, with what they were given; what a person copied or stripped apart."""
    out = []
    for pod in physics.store.all(PODS):
        meta = pod["metadata"]
        if meta["labels"].get("cotenant.dev/role") != "engine" or meta["name"] in physics.copies:
            continue
        given = meta["annotations"].get("cotenant.dev/allocation")
        if given and pod["status"].get("phase") not in ("Succeeded", "Failed"):
            out.append((pod, json.loads(given)))
    return out


def check_step(physics: Physics) -> None:
    """After every step: no GPU promised over its memory, one start per GPU, one engine per replica, and no silence."""
    promised: dict[str, int] = {}
    starting: dict[str, list[str]] = {}
    alike: dict[tuple[str, ...], list[str]] = {}
    for pod, given in _engines(physics):
        leaving = "deletionTimestamp" in pod["metadata"]
        engine = physics.engines.get(pod["metadata"]["uid"])
        if not leaving:
            alike.setdefault(_replica_of(pod), []).append(pod["metadata"]["name"])
        for uuid in given["gpus"]:
            promised[uuid] = promised.get(uuid, 0) + given["bytes"]
            if not leaving and (engine is None or not engine.serving):
                starting.setdefault(uuid, []).append(pod["metadata"]["name"])
    for uuid, amount in promised.items():
        gpu = physics.gpus.get(uuid)
        if gpu is not None and amount > gpu.memory:
            raise Broken(f"{uuid} of {gib(gpu.memory)} has {gib(amount)} promised")
    for uuid, names in starting.items():
        if len(names) > 1 and uuid in physics.gpus:
            raise Broken(f"{' and '.join(names)} start together on {uuid}")
    _check_twins(physics, alike)
    _check_nobody_is_left_without_a_word(physics)


def _replica_of(pod: Body) -> tuple[str, ...]:
    """(uid of its placement, its name without a successor's mark): its labels may have been changed by hand."""
    return (str(pod["metadata"]["ownerReferences"][0]["uid"]), pod["metadata"]["name"].removesuffix("-b"))


def _check_twins(physics: Physics, alike: dict[tuple[str, ...], list[str]]) -> None:
    """One engine per replica; two while one takes over from the other. Of a placement that is gone Kubernetes collects them all."""
    strategies = {p["metadata"]["uid"]: p["spec"]["rollout"]["strategy"] for p in physics.store.all(PLACEMENTS)}
    for (owner, *_), names in alike.items():
        if owner in strategies and len(names) > (2 if strategies[owner] == "SurgeIfRoom" else 1):
            raise Broken(f"{' and '.join(names)} are twins")


def _check_nobody_is_left_without_a_word(physics: Physics) -> None:
    for placement in physics.store.all(PLACEMENTS):
        for model in (placement.get("status") or {}).get("models", ()):
            for replica in model["replicas"]:
                if replica["phase"] != "Ready" and not (replica.get("reason") and replica.get("message")):
                    name = f"{placement['metadata']['name']}-{model['name']}-{replica['index']}"
                    raise Broken(f"{name} is {replica['phase']} without a reason")


def check_rest(physics: Physics, policy: Policy) -> None:
    """At rest: every wanted replica serves or says why not, and nothing is there that nobody wants."""
    wanted: set[tuple[str, str]] = set()
    frozen: set[tuple[str, str]] = set()
    """Placements whose spec cannot be read: nothing of theirs is touched."""
    for placement in physics.store.all(PLACEMENTS):
        meta, status = placement["metadata"], placement.get("status") or {}
        if "deletionTimestamp" in meta:
            frozen.add((meta["namespace"], f"{meta['name']}-"))
            continue
        if status.get("observedGeneration") != meta["generation"]:
            raise Broken(f"{meta['name']}: status is of generation {status.get('observedGeneration')}")
        said = {model["name"]: model for model in status.get("models", ())}
        if any(c["reason"] == "InvalidSpec" and c["type"] == "Ready" for c in status["conditions"]):
            frozen.add((meta["namespace"], f"{meta['name']}-"))
            continue
        for model in placement["spec"]["models"]:
            wanted.add((meta["namespace"], f"{meta['name']}-{model['name']}"))
            replicas = said.get(model["name"], {}).get("replicas", [])
            if len(replicas) != model["replicas"]:
                raise Broken(
                    f"{meta['name']}/{model['name']}: {model['replicas']} replicas, the status tells of {len(replicas)}"
                )
            for replica in replicas:
                _check_replica(physics, meta, model["name"], replica)
    for pod, given in _engines(physics):
        name, where = pod["metadata"]["name"], physics.machines.get(given["node"])
        base = (pod["metadata"]["namespace"], name.removesuffix("-b").rpartition("-")[0])
        if base not in wanted and not _of(frozen, *base) and where is not None and where.up:
            raise Broken(f"pod {name} is left over")
    services = {(s["metadata"]["namespace"], s["metadata"]["name"]) for s in physics.store.all(SERVICES)}
    for namespace, name in sorted(wanted - services):
        raise Broken(f"Service {name} of {namespace} is missing")
    for service in physics.store.all(SERVICES):
        key = (service["metadata"]["namespace"], service["metadata"]["name"])
        if key not in wanted and not _of(frozen, *key):
            raise Broken(f"Service {key[1]} is left over")
    _check_work_is_done(physics, policy)
    _check_rest_is_said(physics)
    _check_memory_waits_for_others(physics)
    _check_ready_is_true(physics)


OUTWARD = ("MemoryNotFree", "GPUNotHeld", "CreateRefused", "NameInUse", "InjectionUnverified")
"""What a replica may wait for although nothing happens any more: it is for others to bring it about."""


def _living(physics: Physics) -> list[Body]:
    """Placements that nobody deletes: of the others nothing is said any more."""
    return [p for p in physics.store.all(PLACEMENTS) if "deletionTimestamp" not in p["metadata"]]


def _check_rest_is_said(physics: Physics) -> None:
    """Where nothing happens any more nothing is said to be under way."""
    for placement in _living(physics):
        for condition in (placement.get("status") or {}).get("conditions", ()):
            if condition["type"] == "Reconciling" and condition["reason"] not in OUTWARD:
                raise Broken(
                    f"{placement['metadata']['name']} is at rest, and said to be Reconciling: {condition['message']}"
                )


def _check_ready_is_true(physics: Physics) -> None:
    """Where all is said to be ready, every engine runs by the present spec, and its Service finds it."""
    for placement in _living(physics):
        meta, status = placement["metadata"], placement.get("status") or {}
        if not any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions", ())):
            continue
        for model in placement["spec"]["models"]:
            said = next((entry for entry in status["models"] if entry["name"] == model["name"]), None)
            for replica in said["replicas"] if said else ():
                pod = physics.store.get(PODS, (meta["namespace"], replica["pod"]))
                if pod is None:
                    raise Broken(f"{replica['pod']} is said to be Ready and is not there")
                if pod["metadata"]["labels"].get("cotenant.dev/model") != model["name"]:
                    raise Broken(f"{replica['pod']} is said to be Ready and its Service does not find it")
                if "faults" in said or "perNode" in model or not model["share"].endswith("%"):
                    continue  # remedies and the node have a say
                _check_runs_as_asked(pod, model)


def _check_runs_as_asked(pod: Body, model: Body) -> None:
    name, args = pod["metadata"]["name"], pod["spec"]["containers"][0]["args"]
    asked = str(Utilization(parse_percent(model["share"])))
    if utilization_of(tuple(args)) != asked:
        raise Broken(f"{name} is said to be Ready with {utilization_of(tuple(args))}, asked is {asked}")
    if f"--max-model-len={model['engine']['maxModelLen']}" not in args:
        raise Broken(f"{name} is said to be Ready with another context than {model['engine']['maxModelLen']}")


def _check_memory_waits_for_others(physics: Physics) -> None:
    """Who waits for memory at rest waits for somebody else's: never for an engine that is only waiting to be replaced."""
    beyond: set[str] = set()
    for pod, given in _engines(physics):
        engine = physics.engines.get(pod["metadata"]["uid"])
        if engine is not None and engine.used > given["bytes"] + given.get("overrun", 0):
            beyond.update(given["gpus"])
    for placement in _living(physics):
        for model in (placement.get("status") or {}).get("models", ()):
            for replica in model["replicas"]:
                there = [gpu for uuid in replica.get("gpus", ()) if (gpu := physics.gpus.get(uuid))]
                blamed = any(gpu.strangers or gpu.uuid in beyond for gpu in there)
                if replica.get("reason") == "MemoryNotFree" and there and not blamed:
                    name = f"{placement['metadata']['name']}-{model['name']}-{replica['index']}"
                    raise Broken(f"{name} waits for memory that only our own engines hold: {replica['message']}")


def _of(placements: set[tuple[str, str]], namespace: str, name: str) -> bool:
    return any(namespace == there and name.startswith(prefix) for there, prefix in placements)


def _check_replica(physics: Physics, meta: Body, model: str, replica: Body) -> None:
    name = f"{meta['name']}-{model}-{replica['index']}"
    if replica["phase"] == "Ready":
        pod = physics.store.get(PODS, (meta["namespace"], replica["pod"]))
        engine = physics.engines.get(pod["metadata"]["uid"]) if pod else None
        if engine is None or not engine.serving:
            raise Broken(f"{name} is said to be Ready and does not serve")


def _awaited(physics: Physics) -> set[str]:
    """GPUs whose replicas wait for others to bring something about."""
    return {
        uuid
        for placement in physics.store.all(PLACEMENTS)
        for model in (placement.get("status") or {}).get("models", ())
        for replica in model["replicas"]
        if replica.get("reason") in OUTWARD
        for uuid in replica.get("gpus", ())
    }


def _check_work_is_done(physics: Physics, policy: Policy) -> None:
    """No replica of one GPU is left unplaced for memory where a clean GPU of an open node would take it."""
    used = {uuid for _, given in _engines(physics) for uuid in given["gpus"]} | _awaited(physics)
    clean = [
        gpu
        for gpu in physics.gpus.values()
        if gpu.uuid not in used
        and not gpu.strangers
        and gpu.health == "Healthy"
        and (machine := physics.machines[gpu.node]).up
        and not machine.cordoned
        and physics.used(gpu) == 0
    ]
    for placement in physics.store.all(PLACEMENTS):
        stands = (placement.get("status") or {}).get("conditions", ())
        if (
            "deletionTimestamp" in placement["metadata"]
            or placement["spec"].get("nodes")
            or any(condition["reason"] == "InvalidSpec" for condition in stands)
        ):
            continue
        for model in placement["spec"]["models"]:
            if model["tensorParallelSize"] != 1 or model["spread"] != "None" or not model["share"].endswith("%"):
                continue
            if "perNode" in model:
                continue
            asked = float(model["share"][:-1]) / 100
            headroom = float((placement["spec"].get("headroom") or f"{policy.headroom / 100}%")[:-1]) / 100
            for said in (placement.get("status") or {}).get("models", ()):
                if said["name"] != model["name"]:
                    continue
                # what a start of it taught counts from then on
                overrun = max([policy.overrun, *(int(known.get("overrun", 0)) for known in said.get("learned", ()))])
                # a share that the estimate refuses is no place; one sequence of 32,768 tokens takes 4 GiB here
                parts = said.get("estimate") or {}
                if not parts and isinstance(physics.config(model["uri"]), ModelConfig):
                    continue  # nobody says what it needs
                least = sum(parse_quantity(parts.get(part, "0")) for part in ("weights", "activation", "cudaGraphs"))
                fits = [
                    gpu.uuid
                    for gpu in clean
                    if asked + headroom <= 1
                    and asked * gpu.memory + overrun <= gpu.memory
                    and (not parts or asked * gpu.memory >= least + 5 * GIB)
                ]
                for replica in said["replicas"]:
                    if replica["phase"] == "Unplaced" and replica["reason"] == "InsufficientMemory" and fits:
                        raise Broken(f"{model['name']} is Unplaced ({replica['message']}) though {fits[0]} is empty")
