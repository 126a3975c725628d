"""What is known of a replica that does not run: its container's end, its log, and the GPUs it was on."""

from __future__ import annotations

from dataclasses import dataclass

from cotenant.core.ledger import CONTEXT, Account, accounts
from cotenant.core.names import named_for
from cotenant.core.snapshot import Device, Pod, Snapshot


@dataclass(frozen=True, slots=True)
class GPUState:
    """One of its GPUs at the moment of judging. Bytes."""

    uuid: str
    usable: int
    free: int
    promised: int
    """Shares of everyone there, its own included."""
    share: int = 0
    """Its own share."""
    strangers: tuple[tuple[int, str, int], ...] = ()
    """(pid, name, bytes) of processes that are not ours."""
    neighbours: tuple[tuple[str, int], ...] = ()
    """(pod, bytes beyond share and overrun) of our tenants that use more than planned."""
    leaving: tuple[tuple[str, int], ...] = ()
    """(pod, bytes) still held by tenants of ours that ended or are being deleted."""
    starting: tuple[str, ...] = ()
    """Other tenants of ours that started or left while it started."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything a verdict may rest on."""

    exit_code: int | None = None
    """None: the container never ran."""
    reason: str = ""
    """Of the container or the pod: OOMKilled, Error, Completed, Evicted, ..."""
    message: str = ""
    """The termination message: 2,048 bytes that mostly miss the cause."""
    log: str | None = None
    """The end of the dead container's log; None where it could not be read."""
    was_ready: bool = False
    deleted_by_us: bool = False
    blocked_reason: str = ""
    """Of a pod that never ran: ImagePullBackOff, FailedMount, Unschedulable, ..."""
    blocked: str = ""
    timed_out: bool = False
    """It was still starting when the start timeout ended."""
    gpus: tuple[GPUState, ...] = ()
    memory: int | None = None
    """Bytes of host memory its container may use."""


def evidence_of(snapshot: Snapshot, pod: Pod, *, timed_out: bool = False) -> Evidence:
    """What the snapshot shows of one pod that ended, or that cannot start."""
    devices = {device.uuid: device for node in snapshot.gpu_nodes for device in node.devices}
    uuids = pod.allocation.gpus if pod.allocation else ()
    ledger = accounts({uuid: devices[uuid] for uuid in uuids if uuid in devices}, snapshot.pods)
    ended = pod.ended
    return Evidence(
        exit_code=ended.exit_code if ended else None,
        reason=ended.reason if ended else "",
        message=ended.message if ended else "",
        log=ended.log if ended else None,
        was_ready=pod.was_ready,
        deleted_by_us=pod.deleting,
        blocked_reason=pod.blocked_reason,
        blocked=pod.blocked,
        timed_out=timed_out,
        gpus=tuple(_state(snapshot, pod, account) for _, account in sorted(ledger.items())),
    )


def _state(snapshot: Snapshot, pod: Pod, account: Account) -> GPUState:
    device = account.device
    pods = {(other.namespace, other.name): other for other in snapshot.pods}
    own = pod.allocation.bytes if pod.allocation else 0
    alive = pod.ended is None and pod.phase not in ("Succeeded", "Failed")
    leaving = tuple(
        (named_for(pod.namespace, reading.namespace, reading.pod), reading.used)
        for reading in device.tenants
        if (reading.namespace, reading.pod) != (pod.namespace, pod.name)
        and ((holder := pods.get((reading.namespace, reading.pod))) is None or not holder.is_alive)
    )
    return GPUState(
        uuid=device.uuid,
        usable=device.usable,
        free=account.free_now(),
        promised=account.promised + (0 if alive else own),
        share=own,
        strangers=tuple(
            (stranger.pid, _name(stranger.pod, stranger.command), stranger.used) for stranger in device.strangers
        ),
        neighbours=tuple(
            (named_for(pod.namespace, tenant.pod.namespace, tenant.pod.name), excess)
            for tenant, excess in account.over()
            if tenant.pod.uid != pod.uid and tenant.pod.is_alive
        ),
        leaving=leaving,
        starting=tuple(_beside(snapshot, pod, device)),
    )


def _name(pod: str, command: str) -> str:
    return f"{command} of pod {pod}" if pod else command


def _beside(snapshot: Snapshot, pod: Pod, device: Device) -> list[str]:
    """Tenants that were starting, or went away, between this pod's creation and its end."""
    until = pod.ended.at if pod.ended else snapshot.now
    names = []
    for other in snapshot.pods:
        if other.uid == pod.uid or other.allocation is None or device.uuid not in other.allocation.gpus:
            continue
        since = other.ready_since
        started_within = other.created <= until and (not other.was_ready if since is None else since >= pod.created)
        ended_within = other.ended is not None and pod.created <= other.ended.at <= until
        if (other.is_alive and started_within) or other.deleting or ended_within:
            names.append(named_for(pod.namespace, other.namespace, other.name))
    return sorted(set(names))


def needed(state: GPUState) -> int:
    """Bytes a start of this share must find free: vLLM asks for the whole share after its own context is made."""
    return state.share + CONTEXT
