"""Allocation -> the pod and the Service that carry it out, and the hash by which a changed wish is noticed.

The hash is of the wish (model, allocation, image, injection), never of the manifest: an operator that renders better after an
upgrade restarts nobody.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

from cotenant.core import vllm
from cotenant.core.demand import Wanted
from cotenant.core.injection import Injection
from cotenant.core.learn import key
from cotenant.core.names import (
    ALLOCATION_ANNOTATION,
    API_VERSION,
    DO_NOT_DISRUPT_ANNOTATION,
    ENGINE_CONTAINER,
    HASH_ANNOTATION,
    MANAGED_BY,
    MANAGED_BY_LABEL,
    MODEL_LABEL,
    PLACEMENT_LABEL,
    REPLICA_LABEL,
    ROLE_LABEL,
)
from cotenant.core.snapshot import Allocation, EngineImage, Manifest, Model, Policy, ServicePort

HASH_VERSION = "v1"
_USER = 65534
_SHM_GIB = 2
PORT = ServicePort("http", 80, "http")
"""Where every Service answers."""


def engine_image(name: str, policy: Policy) -> EngineImage:
    """The catalogue's entry; demand has said already when there is none."""
    return next((engine for engine in policy.engines if engine.name == name), EngineImage(name, name, ""))


def wish_hash(wanted: Wanted, allocation: Allocation, policy: Policy) -> str:
    """`v1-<16 hex>` of everything that only a restart can change."""
    return allocated_hash(model_wish(wanted.model, policy), allocation)


def model_wish(model: Model, policy: Policy) -> str:
    """The model's part of the wish, as canonical text."""
    wish = {
        "uri": model.uri,
        "served": model.served_name,
        "tp": model.tensor_parallel,
        "engine": asdict(model.engine),
        "cpu": model.cpu,
        "memory": model.memory,
        "token": model.token_secret,
        "image": engine_image(model.engine.name, policy).image,
        "injection": policy.injection,
    }
    if model.cache_claim:  # only where it is set: a key for all would restart all
        wish["cache"] = model.cache_claim
    return json.dumps(wish, sort_keys=True, separators=(",", ":"))


def allocated_hash(wish: str, allocation: Allocation) -> str:
    """The wish and the place together."""
    place = f"{allocation.node} {' '.join(allocation.gpus)} {allocation.utilization}"
    return f"{HASH_VERSION}-{hashlib.sha256(f'{wish}|{place}'.encode()).hexdigest()[:16]}"


def lesson(model: Model, engine: vllm.Engine, product: str, utilization: str, policy: Policy) -> str:
    """What a start must have in common with another to teach it everything; `engine` is the block with its remedies in it."""
    version = engine_image(engine.name, policy).version
    return key(model.uri, engine, version, model.tensor_parallel, product, utilization)


@dataclass(frozen=True, slots=True)
class Tuning:
    """What one start runs with beside the spec: remedies taken and what earlier starts taught. Not part of the hash."""

    engine: vllm.Engine
    kv_cache_bytes: int | None = None
    max_model_len: int | None = None
    multimodal: bool = False
    shm_gib: int = _SHM_GIB
    memory: int | None = None
    """Bytes of host memory, where a remedy asks for more than the spec."""
    start_timeout: float | None = None
    """Seconds, where a remedy gives a start more time than the operator's setting."""


def owner(wanted: Wanted) -> list[Manifest]:
    """Kubernetes collects what the placement owns; `controller` lets kubectl drain evict it."""
    placement = wanted.placement
    return [
        {
            "apiVersion": API_VERSION,
            "kind": "ModelPlacement",
            "name": placement.name,
            "uid": placement.uid,
            "controller": True,
        }
    ]


def labels(wanted: Wanted) -> dict[str, str]:
    """What selects the pods of one model."""
    return {
        MANAGED_BY_LABEL: MANAGED_BY,
        PLACEMENT_LABEL: wanted.placement.name,
        MODEL_LABEL: wanted.model.name,
    }


def allocation_json(allocation: Allocation) -> str:
    """The annotation: a restarted controller reads from it what the pod was given."""
    return json.dumps(asdict(allocation), sort_keys=True, separators=(",", ":"))


def engine_pod(
    wanted: Wanted,
    index: int,
    allocation: Allocation,
    policy: Policy,
    injection: Injection,
    tuning: Tuning | None = None,
    name: str = "",
) -> Manifest:
    """The pod that runs one replica on its GPUs."""
    model = wanted.model
    tuning = tuning or Tuning(model.engine)
    weights = vllm.source(model.uri)
    sizing = vllm.Sizing(allocation.bytes, tuning.kv_cache_bytes, tuning.max_model_len, tuning.multimodal)
    arguments = vllm.command(
        tuning.engine,
        model=model.uri,
        served_name=model.served_name,
        tensor_parallel=model.tensor_parallel,
        utilization=allocation.utilization,
        sizing=sizing,
    )
    variables = vllm.environment(model.uri, kept=model.cache_claim is not None)
    env: list[Manifest] = [{"name": name, "value": value} for name, value in variables]
    env += injection.env_list
    if model.token_secret:
        env.append({"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": model.token_secret, "key": "token"}}})
    volumes: list[Manifest] = [
        {"name": "tmp", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{tuning.shm_gib}Gi"}},
        *injection.volumes,
    ]
    mounts: list[Manifest] = [
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "shm", "mountPath": "/dev/shm"},
        *injection.mounts,
    ]
    if weights.kind is vllm.SourceKind.CLAIM:
        volumes.append({"name": "model", "persistentVolumeClaim": {"claimName": weights.claim, "readOnly": True}})
        mounts.append({"name": "model", "mountPath": vllm.MODELS, "readOnly": True})
    elif weights.kind is vllm.SourceKind.IMAGE:
        volumes.append({"name": "model", "image": {"reference": weights.image, "pullPolicy": "IfNotPresent"}})
        mounts.append({"name": "model", "mountPath": vllm.MODELS, "readOnly": True})
    security: Manifest = {
        "runAsNonRoot": True,
        "runAsUser": _USER,
        "runAsGroup": _USER,
        "fsGroup": _USER,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    if model.cache_claim:
        volumes.append({"name": "hub", "persistentVolumeClaim": {"claimName": model.cache_claim}})
        mounts.append({"name": "hub", "mountPath": vllm.HUB_CACHE})
        security["fsGroupChangePolicy"] = "OnRootMismatch"  # else every start walks over all files of all models
    container = {
        "name": ENGINE_CONTAINER,
        "image": engine_image(model.engine.name, policy).image,
        "command": ["vllm", "serve"],
        "args": list(arguments),
        "env": env,
        "ports": [{"name": "http", "containerPort": vllm.PORT}],
        "resources": _resources(wanted, tuning, policy),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
        },
        "volumeMounts": mounts,
        # vLLM answers /health only once it can serve; a hung engine answers no more
        "startupProbe": _probe(period=2, failures=max(1, int((tuning.start_timeout or policy.start_timeout) // 2))),
        "readinessProbe": _probe(period=5, failures=3),
        "livenessProbe": _probe(period=10, failures=12),
        # a SIGTERM while vLLM loads is swallowed; a second one a second later is not (vLLM 0.32, seen 4 of 4)
        "lifecycle": {"preStop": {"exec": {"command": ["sh", "-c", "kill -TERM 1; sleep 2"]}}},
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    spec: Manifest = {
        "restartPolicy": "Never",  # every start is the controller's, so that it waits for its turn at the GPU
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 30,
        "affinity": _on(allocation.node),
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "securityContext": security,
        "containers": [container],
        "volumes": volumes,
    }
    if injection.runtime_class:
        spec["runtimeClassName"] = injection.runtime_class
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name or wanted.names[index][0],
            "namespace": wanted.placement.namespace,
            "labels": labels(wanted) | {REPLICA_LABEL: str(index), ROLE_LABEL: "engine"},
            "annotations": {
                ALLOCATION_ANNOTATION: allocation_json(allocation),
                HASH_ANNOTATION: wish_hash(wanted, allocation, policy),
                DO_NOT_DISRUPT_ANNOTATION: "true",
                **dict(injection.annotations),
            },
            "ownerReferences": owner(wanted),
        },
        "spec": spec,
    }


def _on(node: str) -> Manifest:
    # by name, since kubernetes.io/hostname may differ; not spec.nodeName, which would skip the scheduler's checks
    term = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}


def _probe(period: int, failures: int) -> Manifest:
    return {
        "httpGet": {"path": "/health", "port": "http"},
        "periodSeconds": period,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }


def _resources(wanted: Wanted, tuning: Tuning, policy: Policy) -> Manifest:
    cpu = wanted.model.cpu if wanted.model.cpu is not None else policy.default_cpu
    asked = wanted.model.memory
    requests: Manifest = {"cpu": f"{cpu}m", "memory": str(tuning.memory or asked or policy.default_memory)}
    # a limit only where the user wrote one: ours would kill an engine that the node could bear
    return {"requests": requests, "limits": {"memory": str(asked)}} if asked is not None else {"requests": requests}


def service(wanted: Wanted) -> Manifest:
    """One address per model, in front of its replicas that are ready."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": wanted.base,
            "namespace": wanted.placement.namespace,
            "labels": labels(wanted),
            "annotations": {HASH_ANNOTATION: service_hash(wanted)},
            "ownerReferences": owner(wanted),
        },
        "spec": {
            "type": "ClusterIP",
            "selector": selector(wanted),
            "ports": [
                {"name": PORT.name, "port": PORT.port, "targetPort": PORT.target, "protocol": PORT.protocol},
            ],
        },
    }


def selector(wanted: Wanted) -> dict[str, str]:
    """The pods its Service is in front of."""
    return labels(wanted) | {ROLE_LABEL: "engine"}


def service_hash(wanted: Wanted) -> str:
    """Changes with anything the Service says."""
    text = f"{wanted.key}:{wanted.placement.uid}:80"
    return f"{HASH_VERSION}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def url(wanted: Wanted) -> str:
    """Where clients inside the cluster ask."""
    return f"http://{wanted.base}.{wanted.placement.namespace}.svc/v1"
