"""What the ladder must know of the replica that died, from the snapshot: its share, and the room here and elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cotenant.core.demand import Wanted
from cotenant.core.inventory import inventory
from cotenant.core.ledger import Account, accounts
from cotenant.core.memo import Memo
from cotenant.core.share import SCALE, read_utilization
from cotenant.core.snapshot import Model, Placement, Pod, Snapshot, matches


@dataclass(frozen=True, slots=True)
class Facts:
    """Bytes are per GPU."""

    key: str
    """`namespace/placement/model/replica`: the back-off's jitter comes from it."""
    index: int
    generation: int
    """Of the placement's spec."""
    gpus: tuple[str, ...] = ()
    usable: int = 0
    """T of the smallest of its GPUs."""
    utilization: int = 0
    """Ten-thousandths it was given."""
    overrun: int = 0
    room: int = 0
    """What the ledger could promise on the tightest of its GPUs beyond its own share."""
    spare: int = 0
    """What the ledger expects to stay unused there, its own share and overrun in use."""
    elsewhere: int = 0
    """The largest share that fits on other GPUs; 0 = none."""
    yielding: int = 0
    """What tenants of lower priority hold on its GPUs, where least."""
    kv_bytes: int | None = None
    """KV cache of its last start that came up."""
    host_memory: int | None = None
    start_timeout: float = 1800.0
    wish: str = ""
    """What is asked for its model."""

    @property
    def share(self) -> int:
        """Bytes it was granted."""
        return self.usable * self.utilization // SCALE


class Ground:
    """What the facts of all pods of one pass stand on, worked out once: a thousand engines may fall at the same moment."""

    def __init__(self, snapshot: Snapshot, memo: Memo | None = None) -> None:
        self.bins = inventory(snapshot.nodes, snapshot.gpu_nodes, snapshot.policy, snapshot.now, memo)
        self.ledger = accounts(self.bins.devices, snapshot.pods, memo)
        self._rooms: dict[tuple[int, int], dict[str, int]] = {}

    def rooms(self, headroom: int, overrun: int) -> dict[str, int]:
        """The largest share one more tenant could be promised, by GPU."""
        found = self._rooms.get((headroom, overrun))
        if found is None:
            found = {uuid: _room(account, headroom, overrun) for uuid, account in self.ledger.items()}
            self._rooms[headroom, overrun] = found
        return found

    def without(self, pod: Pod, uuid: str) -> Account:
        """A GPU's account as if this pod were not."""
        account = self.ledger[uuid]
        others = tuple(tenant.pod for tenant in account.tenants if tenant.pod.uid != pod.uid)
        return accounts({uuid: account.device}, others)[uuid]


def facts_of(
    snapshot: Snapshot,
    wanted: Wanted,
    index: int,
    pod: Pod,
    *,
    wish: str = "",
    kv_bytes: int | None = None,
    ground: Ground | None = None,
) -> Facts:
    """The facts about the pod of a replica that ended or cannot start. `kv_bytes`: what a like start of it learned.

    Whose pod it is, is not read from its labels: they may have been changed by hand.
    """
    ground = ground or Ground(snapshot)
    placement, model = wanted.placement, wanted.model
    headroom = snapshot.policy.headroom if placement.headroom is None else placement.headroom
    bare = Facts(
        key=f"{wanted.key}/{index}",
        index=index,
        generation=placement.generation,
        kv_bytes=kv_bytes,
        host_memory=model.memory or snapshot.policy.default_memory,
        start_timeout=snapshot.policy.start_timeout,
        wish=wish,
    )
    given = pod.allocation
    here = [ground.without(pod, uuid) for uuid in given.gpus if uuid in ground.ledger] if given else []
    if given is None or not here:
        return bare
    usable = min(account.device.usable for account in here)
    rooms = [_room(account, headroom, given.overrun) for account in here]
    lower = _lower(snapshot, placement, model)
    granted = read_utilization(given.utilization)
    return replace(
        bare,
        gpus=given.gpus,
        usable=usable,
        utilization=granted.ten_thousandths if granted else 0,
        overrun=given.overrun,
        room=max(0, min(rooms) - given.bytes),
        spare=max(0, min(account.free_use for account in here) - given.bytes - given.overrun),
        elsewhere=_elsewhere(ground, placement, len(given.gpus), given.gpus, headroom, given.overrun),
        yielding=min(_held(account, lower) for account in here),
    )


def _room(account: Account, headroom: int, overrun: int) -> int:
    """The largest share one more tenant could be promised on this GPU."""
    kept = account.device.usable * max(account.headroom, headroom) // SCALE
    promises = account.device.usable - kept - account.promised - account.strangers
    return max(0, min(promises, account.free_use - overrun))


def _elsewhere(
    ground: Ground,
    placement: Placement,
    gpus: int,
    avoid: tuple[str, ...],
    headroom: int,
    overrun: int,
) -> int:
    best, free = 0, ground.rooms(headroom, overrun)
    for name, machine in sorted(ground.bins.machines.items()):
        wanted = matches(placement.selector, machine.node.labels) and (not placement.names or name in placement.names)
        if not wanted or machine.closed or machine.lost:
            continue
        rooms = sorted(
            (
                free[device.uuid]
                for device in machine.devices
                if device.uuid not in avoid and device.health == "Healthy" and device.owner is None
            ),
            reverse=True,
        )
        if len(rooms) >= gpus:
            best = max(best, rooms[gpus - 1])
    return best


def _lower(snapshot: Snapshot, placement: Placement, model: Model) -> frozenset[tuple[str, str, str]]:
    """(namespace, placement, model) that rank below this one; other namespaces are not ours to move."""
    return frozenset(
        (other.namespace, other.name, entry.name)
        for other in snapshot.placements
        if other.namespace == placement.namespace
        for entry in other.models
        if entry.priority < model.priority
    )


def _held(account: Account, lower: frozenset[tuple[str, str, str]]) -> int:
    pods = ((tenant.pod, tenant.promised) for tenant in account.tenants)
    return sum(promised for pod, promised in pods if (pod.namespace, pod.placement, pod.model) in lower)
