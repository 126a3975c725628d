"""What the agent says of its node: readings, processes, pods and holdings put together. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cotenant.agent.podresources import Holding, Holdings
from cotenant.agent.pods import NO_PODS, PodInfo, Pods
from cotenant.agent.processes import Process
from cotenant.agent.readings import HEALTHY, LOST, DeviceReading, NodeReading, health, is_fatal, islands
from cotenant.core.share import MIB, gib
from cotenant.core.snapshot import Device, Stranger, TenantReading

NO_HOLDINGS = Holdings(at=0.0)
HIDDEN_FROM = 512 * MIB
"""Bytes no process accounts for, from which on we say so: below the context of one process (518 MiB on an H200)."""
HIDDEN_READINGS = 3
"""Readings in a row before that is believed: a process that just ended is off the list before its memory is back."""
FAILED_READINGS = 3
"""Readings of one GPU that fail in a row before it is called unhealthy; one that is lost is so at once."""
MOST_STRANGERS = 256
"""The GPUNode holds no more on one GPU."""
STEP = 256 * MIB
"""A figure that moved less is not worth a write."""
SHARING_LABEL = "nvidia.com/gpu.sharing-strategy"
REPLICAS_LABEL = "nvidia.com/gpu.replicas"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The content of a condition."""

    holds: bool
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Report:
    """What the GPUNode should say."""

    node: str
    devices: tuple[Device, ...]
    ready: Verdict
    supported: Verdict
    driver: str = ""


# --------------------------------------------------------------------------------------- what is remembered in between
@dataclass(frozen=True, slots=True)
class Known:
    """What earlier readings said, for the time when a GPU or the driver says nothing."""

    devices: tuple[DeviceReading, ...] = ()
    driver: str = ""
    fatal: tuple[tuple[str, int], ...] = ()
    """(UUID, Xid): the first Xid that made a GPU unusable, until the driver is loaded anew."""
    hidden: tuple[tuple[str, int], ...] = ()
    """(UUID, readings in a row with memory that nobody accounts for)."""
    failing: tuple[tuple[str, int], ...] = ()
    """(UUID, readings in a row that failed and may yet succeed)."""

    def after(self, reading: NodeReading) -> Known:
        """With one more reading. A GPU that is not in it any more stays, with its last figures, as `Missing`."""
        fatal = {} if reading.reloaded else dict(self.fatal)
        for xid in reading.xids:
            if is_fatal(xid.number):
                fatal.setdefault(xid.uuid, xid.number)
        failed = dict(self.failing)
        failing = {d.uuid: failed.get(d.uuid, 0) + 1 for d in reading.devices if d.error and d.error != LOST}
        fresh = {device.uuid for device in reading.devices}
        missing = tuple(replace(device, error="Missing") for device in self.devices if device.uuid not in fresh)
        devices = tuple(sorted((*reading.devices, *missing), key=lambda device: (device.index, device.uuid)))
        before = dict(self.hidden)
        hidden = {d.uuid: before.get(d.uuid, 0) + 1 for d in reading.devices if d.hidden >= HIDDEN_FROM}
        return Known(
            devices,
            reading.driver or self.driver,
            fatal=tuple(sorted(fatal.items())),
            hidden=tuple(sorted(hidden.items())),
            failing=tuple(sorted(failing.items())),
        )

    def health(self, device: DeviceReading) -> str:
        """`Healthy` or why not; an error that came once or twice and is not the loss of the GPU does not count yet."""
        if 0 < dict(self.failing).get(device.uuid, 0) < FAILED_READINGS:
            device = replace(device, error="")
        return health(device, dict(self.fatal).get(device.uuid))

    def hides(self, device: DeviceReading) -> bool:
        """Whether the GPU is believed to be used by processes that NVML does not list."""
        return dict(self.hidden).get(device.uuid, 0) >= HIDDEN_READINGS


@dataclass(frozen=True, slots=True)
class Surroundings:
    """All but NVML: whose processes and GPUs they are."""

    processes: dict[int, Process]
    pods: Pods = NO_PODS
    pods_problem: str = ""
    """Why the node's pods could not be listed though one of them is unknown; '' = they were."""
    holdings: Holdings = NO_HOLDINGS
    holdings_problem: str = ""
    """Why the holdings are too old to be believed."""
    labels: tuple[tuple[str, str], ...] = ()
    """Of the Node."""


# ------------------------------------------------------------------------------------------------------ the report
def report(node: str, known: Known, around: Surroundings, nvml_problem: Verdict | None = None) -> Report:
    """What to say now; `nvml_problem` when there is no reading, and all figures are the last ones."""
    numbers = islands(known.devices)
    devices = tuple(_device(node, reading, known, around, numbers) for reading in known.devices)
    return Report(
        node=node,
        devices=devices,
        ready=nvml_problem or _ready(known, around),
        supported=_supported(known, around),
        driver=known.driver,
    )


def _device(node: str, reading: DeviceReading, known: Known, around: Surroundings, numbers: dict[str, int]) -> Device:
    tenants, strangers = _users(reading, around)
    if known.hides(reading):
        strangers = (Stranger(pid=0, command="(hidden)", used=reading.hidden), *strangers)
    holder, owner = _held_by(reading.uuid, around)
    return Device(
        uuid=reading.uuid,
        node=node,
        index=reading.index,
        product=reading.product,
        total=reading.memory.total,
        reserved=reading.memory.reserved,
        used=reading.memory.used,
        island=numbers.get(reading.uuid),
        numa=reading.wiring.numa,
        health=known.health(reading),
        holder=holder,
        owner=owner,
        tenants=tenants,
        strangers=strangers,
    )


def _users(reading: DeviceReading, around: Surroundings) -> tuple[tuple[TenantReading, ...], tuple[Stranger, ...]]:
    """The pods of ours on a GPU with their bytes, and everyone else. Our preflight pod is neither."""
    tenants: dict[tuple[str, str], int] = {}
    strangers = []
    for process in reading.processes:
        seen = around.processes.get(process.pid)
        membership = seen.membership if seen else None
        pod = around.pods.by_uid.get(membership.pod_uid) if membership else None
        if pod is not None and _is_tenant(pod, reading.uuid):
            tenants[pod.key] = tenants.get(pod.key, 0) + process.used
        elif pod is None or pod.role != "preflight":
            command = seen.command if seen else ""
            strangers.append(Stranger(process.pid, command, process.used, "/".join(pod.key) if pod else ""))
    return (
        tuple(TenantReading(namespace, name, used) for (namespace, name), used in sorted(tenants.items())),
        _bounded(sorted(strangers, key=lambda stranger: stranger.pid)),
    )


def _bounded(strangers: list[Stranger]) -> tuple[Stranger, ...]:
    """No more than fit; the bytes of the smallest are kept, as one entry."""
    if len(strangers) < MOST_STRANGERS:
        return tuple(strangers)
    largest = sorted(strangers, key=lambda stranger: (-stranger.used, stranger.pid))
    kept, rest = largest[: MOST_STRANGERS - 2], largest[MOST_STRANGERS - 2 :]
    others = Stranger(pid=0, command=f"({len(rest)} more)", used=sum(stranger.used for stranger in rest))
    return (others, *sorted(kept, key=lambda stranger: stranger.pid))


def _is_tenant(pod: PodInfo, uuid: str) -> bool:
    """An engine on a GPU it was given; on one it was not given it is a stranger, for nobody counts with it there."""
    return pod.role == "engine" and (pod.share is None or uuid in pod.share.gpus)


def _held_by(uuid: str, around: Surroundings) -> tuple[str | None, str | None]:
    """(our holder, foreign owner) of a GPU by the device plugin; at most one of them.

    Kubelets before 1.34 list ended pods too, and a deleted one for a moment: those hold nothing.
    """
    holding = [_pod_of(held, around.pods) for held in around.holdings.held if held.gpu == uuid]
    pods = sorted((pod for pod in holding if pod is not None and not pod.ended), key=lambda pod: (pod.role, pod.key))
    for pod in pods:
        if pod.role == "holder":
            return pod.name, None
    return (None, "/".join(pods[0].key)) if pods else (None, None)


def _pod_of(held: Holding, pods: Pods) -> PodInfo | None:
    return pods.named(held.namespace, held.pod)


def _ready(known: Known, around: Surroundings) -> Verdict:
    hiding = [device for device in known.devices if known.hides(device)]
    if not known.devices:
        return Verdict(False, "NoGPUs", "NVML lists no GPU on this node")
    if hiding and not any(device.processes for device in known.devices):
        amount = gib(sum(device.hidden for device in hiding))
        text = f"{amount} are in use and NVML lists no process: the agent's pod needs hostPID: true"
        return Verdict(False, "ProcessesHidden", text)
    if around.holdings_problem:
        return Verdict(False, "PodResourcesUnavailable", around.holdings_problem)
    if around.pods_problem:
        return Verdict(False, "PodsUnknown", around.pods_problem)
    count = len(known.devices)
    sick = sum(1 for device in known.devices if known.health(device) != HEALTHY)
    text = f"{count} GPU{'s' if count > 1 else ''}" + (f", {sick} unhealthy" if sick else "")
    return Verdict(True, "Reporting", text)


def _supported(known: Known, around: Surroundings) -> Verdict:
    """Whether GPUs can be shared here by UUID: not where the driver or the device plugin divides them already."""
    labels = dict(around.labels)
    strategy = labels.get(SHARING_LABEL, "none")
    offered = {*around.holdings.allocatable, *(held.device for held in around.holdings.held)}
    is_mig = any(device.mig for device in known.devices) or any(id.startswith("MIG-") for id in offered)
    if is_mig:
        return Verdict(False, "MIG", "MIG mode is on; turn it off (nvidia-smi -mig 0) or leave the node to others")
    if strategy == "mps":
        return Verdict(
            False, "MPSReplicated", "the device plugin replicates GPUs by MPS; set its sharing strategy to none"
        )
    replicated = any("::" in id for id in offered) or labels.get(REPLICAS_LABEL, "1") not in ("", "0", "1")
    if strategy != "none" or replicated:
        text = "the device plugin time-slices GPUs, so a holder keeps only a part; set its sharing strategy to none"
        return Verdict(False, "TimeSliced", text)
    return Verdict(True, "WholeGPUs", "GPUs are handed out whole")


# ------------------------------------------------------------------------------------------------------- what matters
def matters(published: Report | None, now: Report) -> bool:
    """Whether the difference is worth a write: all but figures that moved less than 256 MiB."""
    return published is None or _coarse(published) != _coarse(now) or _moved(published, now)


def _coarse(said: Report) -> Report:
    """Without bytes in use."""
    devices = tuple(
        replace(
            device,
            used=0,
            tenants=tuple(replace(tenant, used=0) for tenant in device.tenants),
            strangers=tuple(replace(stranger, used=0) for stranger in device.strangers),
        )
        for device in said.devices
    )
    return replace(said, devices=devices)


def _moved(one: Report, other: Report) -> bool:
    """Whether a figure moved far; both say the same but for figures."""
    return any(abs(a - b) >= STEP for a, b in zip(_figures(one), _figures(other), strict=True))


def _figures(said: Report) -> list[int]:
    return [
        figure
        for device in said.devices
        for figure in (device.used, *(t.used for t in device.tenants), *(s.used for s in device.strangers))
    ]
