"""All that one pass may know, the time included: slim immutable records of the cluster."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from cotenant.core.share import GIB, Share
from cotenant.core.vllm import Engine

if TYPE_CHECKING:
    from cotenant.core.estimate.modelconfig import ModelConfig
    from cotenant.core.preflight import Preflight

Labels = tuple[tuple[str, str], ...]
"""Sorted key-value pairs; what a selector asks for or a node carries."""


def matches(selector: Labels, labels: Labels) -> bool:
    """Whether a node with these labels is selected; an empty selector selects every node."""
    return set(selector) <= set(labels)


class Spread(StrEnum):
    """How far apart the replicas of one model must be."""

    NONE = "None"
    GPU = "GPU"
    NODE = "Node"


# ---------------------------------------------------------------------------------------------------------- the wish
@dataclass(frozen=True, slots=True)
class NodeShare:
    """Another share on the nodes a selector selects."""

    selector: Labels
    share: Share


class Remedy(StrEnum):
    """What the operator may change by itself after an out-of-memory."""

    REDUCE_CONTEXT = "ReduceContext"
    REDUCE_BATCH = "ReduceBatch"
    GROW_SHARE = "GrowShare"
    MOVE = "Move"


@dataclass(frozen=True, slots=True)
class OnOutOfMemory:
    """What the spec allows after an out-of-memory."""

    max_share: Share | None = None
    max_attempts: int = 4
    """Starts per hour before the replica is left `Failed`."""
    allow: tuple[Remedy, ...] = ()


@dataclass(frozen=True, slots=True)
class Model:
    """An entry of a placement: one model, its share and its replicas."""

    name: str
    uri: str
    share: Share
    served_name: str = ""
    per_node: tuple[NodeShare, ...] = ()
    replicas: int = 1
    tensor_parallel: int = 1
    spread: Spread = Spread.NONE
    priority: int = 0
    engine: Engine = Engine()
    cpu: int | None = None
    """Thousandths of a core each replica asks of its node; None = the default."""
    memory: int | None = None
    """Bytes of host memory each replica asks of its node; None = the default."""
    token_secret: str | None = None
    cache_claim: str | None = None
    """A claim of the namespace that keeps what was downloaded from the hub; None = every start downloads anew."""
    on_out_of_memory: OnOutOfMemory = OnOutOfMemory()


class RolloutStrategy(StrEnum):
    """How a changed spec replaces what runs."""

    RECREATE = "Recreate"
    SURGE_IF_ROOM = "SurgeIfRoom"


@dataclass(frozen=True, slots=True)
class Invalid:
    """A spec that cannot be acted on: the field, and what to do."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Placement:
    """One ModelPlacement: the wish, and what its status says we already did and learned."""

    namespace: str
    name: str
    uid: str
    generation: int
    created: float
    models: tuple[Model, ...]
    selector: Labels = ()
    names: tuple[str, ...] = ()
    headroom: int | None = None
    """Ten-thousandths of each GPU promised to nobody; None = the operator's default."""
    strategy: RolloutStrategy = RolloutStrategy.RECREATE
    max_unavailable: int = 1
    deleting: bool = False
    invalid: Invalid | None = None
    status: Status = field(default_factory=lambda: Status())

    @property
    def key(self) -> tuple[str, str]:
        """Namespace and name."""
        return (self.namespace, self.name)


# ------------------------------------------------------------------------------------- what a status remembers for us
@dataclass(frozen=True, slots=True)
class Condition:
    """A condition as last written."""

    type: str
    status: str
    reason: str
    message: str
    since: float
    generation: int


@dataclass(frozen=True, slots=True)
class ReplicaMemory:
    """What the status says of one replica: its phase and since when."""

    model: str
    index: int
    phase: str
    since: float
    node: str = ""
    gpus: tuple[str, ...] = ()
    """Where it has its place; empty where it has none."""


@dataclass(frozen=True, slots=True)
class Learned:
    """What starts of one model taught, per (engine, settings, tensor parallel, product): see `key`."""

    model: str
    key: str
    weights: int | None = None
    kv_cache_tokens: int | None = None
    kv_cache_bytes: int | None = None
    cuda_graphs: int | None = None
    overrun: int | None = None
    ready_seconds: int | None = None


@dataclass(frozen=True, slots=True)
class Fault:
    """A replica's ladder so far: what went wrong last, what was tried, when it may start again."""

    model: str
    index: int
    generation: int
    reason: str
    message: str
    attempt: int
    """Starts that failed for this fault, this one included."""
    remedies: tuple[str, ...] = ()
    """Rungs taken, in order; each at most once."""
    settings: tuple[tuple[str, str], ...] = ()
    """What the remedies changed: (name, value) as core.oom reads them."""
    times: tuple[float, ...] = ()
    """When the last failures were (Unix seconds), newest last: `maxAttempts` counts those of the last hour."""
    retry_at: float = 0.0
    failed: bool = False
    """Given up: a person must change something."""
    uid: str = ""
    """Of the pod whose death this took down last: only then may the pod go."""
    wish: str = ""
    """What was asked for this model then; '' = a version of the operator that did not know wrote it."""


@dataclass(frozen=True, slots=True)
class Status:
    """The parts of ModelPlacement.status that the next decision builds on."""

    observed_generation: int = 0
    conditions: tuple[Condition, ...] = ()
    replicas: tuple[ReplicaMemory, ...] = ()
    learned: tuple[Learned, ...] = ()
    faults: tuple[Fault, ...] = ()
    raw: str = ""
    """Canonical JSON of the status as it stands, so that an equal one is not written again."""


# ------------------------------------------------------------------------------------------------------ what is there
@dataclass(frozen=True, slots=True)
class Node:
    """One Kubernetes node, as far as a plan needs it."""

    name: str
    labels: Labels = ()
    ready: bool = True
    not_ready_since: float | None = None
    cordoned: bool = False
    cpu: int = 1 << 40
    """Allocatable thousandths of a core."""
    memory: int = 1 << 60
    """Allocatable bytes."""
    uid: str = ""

    def label(self, key: str, default: str = "") -> str:
        """The value of one label."""
        return dict(self.labels).get(key, default)


@dataclass(frozen=True, slots=True)
class TenantReading:
    """Bytes one pod's processes use on a device."""

    namespace: str
    pod: str
    used: int


@dataclass(frozen=True, slots=True)
class Stranger:
    """A process on the device that is not ours."""

    pid: int
    command: str
    used: int
    pod: str = ""
    """`namespace/name` where it belongs to a pod."""


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU as its agent reports it. Memory in bytes, NVML v2."""

    uuid: str
    node: str
    index: int
    product: str
    total: int
    reserved: int = 0
    used: int = 0
    island: int | None = None
    """GPUs of one node with equal numbers are joined by NVLink; None = joined to none."""
    numa: int | None = None
    health: str = "Healthy"
    holder: str | None = None
    """Name of our pod that keeps it from others."""
    owner: str | None = None
    """`namespace/name` of a foreign pod that holds it through the device plugin."""
    tenants: tuple[TenantReading, ...] = ()
    strangers: tuple[Stranger, ...] = ()

    @property
    def usable(self) -> int:
        """T: what CUDA calls total and vLLM multiplies."""
        return self.total - self.reserved


@dataclass(frozen=True, slots=True)
class GPUNode:
    """What one agent says of one node."""

    name: str
    devices: tuple[Device, ...] = ()
    supported: bool = True
    reason: str = ""
    message: str = ""
    ready: bool = True
    """The agent answers and trusts its own readings."""
    agent_version: str = ""


@dataclass(frozen=True, slots=True)
class Allocation:
    """What a replica was given. Bytes are per GPU."""

    node: str
    gpus: tuple[str, ...]
    bytes: int
    utilization: str
    headroom: int = 0
    """Ten-thousandths of each of these GPUs its placement wants promised to nobody."""
    overrun: int = 0
    """Bytes per GPU it was expected to use beyond its share."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a container ended. `log` is the bounded text read once from the dead pod; None until it was read."""

    exit_code: int
    reason: str
    message: str
    at: float
    log: str | None = None


@dataclass(frozen=True, slots=True)
class Pod:
    """One engine pod of ours."""

    namespace: str
    name: str
    uid: str
    placement: str
    owner_uid: str
    model: str
    replica: int
    created: float
    allocation: Allocation | None
    hash: str = ""
    phase: str = "Pending"
    ready: bool = False
    deleting: bool = False
    node: str | None = None
    """spec.nodeName: where it was bound."""
    ready_since: float | None = None
    was_ready: bool = False
    """It served at some time: an end now is a run-time death, not a failed start."""
    blocked: str = ""
    """Why it cannot start yet, in the scheduler's or the kubelet's words; '' when nothing is reported."""
    blocked_reason: str = ""
    ended: Ended | None = None
    start_log: str | None = None
    """The bounded log of a start that became ready, read once, for what it teaches; None until it was read."""
    args: tuple[str, ...] = ()
    """The command line the engine really runs with."""
    resource_version: str = ""

    @property
    def is_alive(self) -> bool:
        """Not ended and not asked to leave."""
        return self.ended is None and not self.deleting and self.phase not in ("Succeeded", "Failed")

    @property
    def is_starting(self) -> bool:
        """Alive and has never served: it may allocate at any moment, so nobody else may start beside it.

        One that served and is not ready now (its probe fails under load, its node is silent) has all its memory already.
        """
        return self.is_alive and not self.ready and not self.was_ready


@dataclass(frozen=True, slots=True)
class Holder:
    """One pod that keeps a GPU from others (binding Pinned)."""

    name: str
    node: str
    index: int
    running: bool = False
    deleting: bool = False
    blocked: str = ""
    uid: str = ""
    ended: bool = False
    """It holds nothing any more and its kubelet will not start it again: after a reboot kubelets reject pods that ask for
    a GPU until the device plugin is back."""
    created: float = 0.0
    """Unix seconds."""


@dataclass(frozen=True, slots=True)
class ServicePort:
    """One port of a Service."""

    name: str
    port: int
    target: str
    protocol: str = "TCP"


@dataclass(frozen=True, slots=True)
class ServiceRecord:
    """One Service that carries our label."""

    namespace: str
    name: str
    hash: str
    placement: str
    model: str
    uid: str = ""
    owner_uid: str = ""
    """Of the placement that Kubernetes collects it with; '' = none."""
    selector: Labels = ()
    ports: tuple[ServicePort, ...] = ()


@dataclass(frozen=True, slots=True)
class EngineImage:
    """An entry of the operator's engine catalogue."""

    name: str
    image: str
    version: str


@dataclass(frozen=True, slots=True)
class Policy:
    """The operator's settings that decisions depend on."""

    headroom: int = 500
    """Ten-thousandths; 5 %."""
    overrun: int = 3 * GIB
    """Per rank until learned, of a model whose config is not known (measured 0.5 to 3.0 GiB on an H200, vLLM 0.26.0, 2026-11-21)."""
    engines: tuple[EngineImage, ...] = ()
    max_tenants_per_gpu: int = 16
    max_moves: int = 8
    """Running replicas of lower priority one plan may move or displace to make room; 0 = none."""
    node_grace: float = 60.0
    """Seconds a node may be NotReady before its replicas are planned elsewhere."""
    start_timeout: float = 1800.0
    """Seconds a start may take before it counts as failed."""
    default_cpu: int = 1000
    default_memory: int = 8 * GIB
    runtime_class: str = "nvidia"
    injection: str = "cdi-device-plugin"
    binding: str = "Pinned"
    reserve: bool = True
    """Hold each GPU with a holder pod before using it; False on dedicated nodes."""
    holder_idle: float = 300.0
    """Seconds a held GPU may be empty before it is given back."""
    holder_image: str = "registry.k8s.io/pause:3.10"
    holder_priority_class: str = ""
    preflight: bool = True
    """Prove on every node that a pod sees exactly the GPU it was given before an engine lands there."""
    preflight_image: str = ""
    service_account: str = ""
    """Of holders and preflights."""
    namespace: str = "cotenant-system"
    """Where holders live."""
    managed_label: tuple[str, str] = ("cotenant.dev/managed", "true")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The cluster at one moment."""

    now: float
    policy: Policy = Policy()
    placements: tuple[Placement, ...] = ()
    nodes: tuple[Node, ...] = ()
    gpu_nodes: tuple[GPUNode, ...] = ()
    pods: tuple[Pod, ...] = ()
    holders: tuple[Holder, ...] = ()
    preflights: tuple[Preflight, ...] = ()
    injection_version: str = ""
    """Changes when the cluster's RuntimeClass or ClusterPolicy does, so that nodes are proven anew."""
    idle: tuple[tuple[str, float], ...] = ()
    """(GPU, since when it is held and empty), as the last pass said."""
    configs: tuple[tuple[str, ModelConfig | str], ...] = ()
    """(uri, what its config says, or why it could not be read) of models in the placements."""
    silent: frozenset[str] = frozenset()
    """Nodes whose agent has not renewed its Lease: what their GPUNode says is old."""
    reading: frozenset[str] = frozenset()
    """URIs whose configs are being read: their models start once that has ended, well or not."""
    services: tuple[ServiceRecord, ...] = ()
    refusals: tuple[tuple[str, str, str], ...] = ()
    """(namespace, pod, message): creates the API server refused (a quota, Pod Security, admission), in its words."""
    refused_services: tuple[tuple[str, str, str], ...] = ()
    """(namespace, Service, message): those that may not be, because the API server refused them or the name is taken."""


Manifest = dict[str, Any]
"""A Kubernetes object as its YAML would say it, with only the fields we mean."""
