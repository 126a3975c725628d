"""What a pass decided, as data; controller/act carries it out and decides nothing."""

from __future__ import annotations

from dataclasses import dataclass

from cotenant.core.packing.problem import Fragmentation
from cotenant.core.snapshot import Manifest


@dataclass(frozen=True, slots=True)
class Create:
    """Make one pod, by create: a name that exists already is never overwritten and never made twice."""

    manifest: Manifest
    reason: str
    """CamelCase, for the log, the event and the metric."""
    message: str = ""
    about: tuple[str, str, str] | None = None
    """(namespace, name, uid) of the placement it is for; None for holders and preflights."""


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete one pod (or Service), this very one: the uid is a precondition."""

    namespace: str
    name: str
    uid: str
    reason: str
    message: str = ""
    grace_seconds: int | None = None
    about: tuple[str, str, str] | None = None
    kind: str = "Pod"
    """Or `Service`; a Service's uid may be ''."""


@dataclass(frozen=True, slots=True)
class Apply:
    """Server-side apply one object that is not a pod (a Service)."""

    manifest: Manifest
    reason: str


@dataclass(frozen=True, slots=True)
class WriteStatus:
    """Server-side apply the whole status we own of one ModelPlacement."""

    namespace: str
    name: str
    status: Manifest


@dataclass(frozen=True, slots=True)
class Emit:
    """Tell the user by an Event on the placement (namespace, name, uid); equal ones are counted up, not repeated."""

    namespace: str
    name: str
    uid: str
    type: str
    """Normal or Warning."""
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Judged:
    """One death as it was judged, and the rungs taken for it, for metrics."""

    namespace: str
    pod: str
    verdict: str
    rungs: tuple[str, ...] = ()
    uid: str = ""
    """Of that pod: a death is judged again where writing it down failed."""


@dataclass(frozen=True, slots=True)
class Recovered:
    """A replica that serves again after a death, for metrics."""

    verdict: str
    seconds: float
    """From its last death as it was judged until it was seen Ready."""
    uid: str = ""
    """Of the pod that died."""


@dataclass(frozen=True, slots=True)
class GPUFigures:
    """One GPU's ledger, for metrics. Bytes."""

    node: str
    uuid: str
    usable: int
    promised: int
    expected: int
    """Promised + overruns."""
    strangers: int
    used: int
    tenants: int


@dataclass(frozen=True, slots=True)
class Decision:
    """Everything one pass wants done."""

    creates: tuple[Create, ...] = ()
    deletes: tuple[Delete, ...] = ()
    applies: tuple[Apply, ...] = ()
    statuses: tuple[WriteStatus, ...] = ()
    events: tuple[Emit, ...] = ()
    wake_at: float | None = None
    """Unix seconds at which a pass is wanted even if nothing rings: a back-off or a grace ends."""
    idle: tuple[tuple[str, float], ...] = ()
    """(GPU, since when it is held and empty): the next snapshot brings it back."""
    judged: tuple[Judged, ...] = ()
    recovered: tuple[Recovered, ...] = ()
    gpus: tuple[GPUFigures, ...] = ()
    left: Fragmentation | None = None
    """What the plan leaves free, for metrics."""
    replicas: tuple[tuple[str, int], ...] = ()
    """(phase, replicas), for metrics."""
    waiting: int = 0
    """Replicas that wait for their turn at a GPU."""
    refused: tuple[tuple[str, str], ...] = ()
    """(namespace, pod) that the API server refused and that are wanted still, asked for in this pass or not."""
