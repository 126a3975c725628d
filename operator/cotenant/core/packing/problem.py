"""What the packer is asked and what it answers: hosts with bins and workloads in, placements and reasons out."""

from __future__ import annotations

from dataclasses import dataclass

from cotenant.core.share import gib
from cotenant.core.snapshot import Spread


@dataclass(frozen=True, slots=True)
class Bin:
    """One GPU that may be planned on. Bytes."""

    uuid: str
    memory: int
    """Usable memory T."""
    used: int = 0
    """Used or promised to what this plan may not touch: strangers, tenants that are leaving."""
    island: int | None = None
    outside: tuple[str, ...] = ()
    """Engines on it that are no part of this problem, as `family/number` where their model is one of it."""
    cost: int | None = None
    """Of opening it when clean; None = the product's cost. 0 where it is held or carries a stranger already."""


@dataclass(frozen=True, slots=True)
class Host:
    """One node. Its `kind` says which demand of each workload holds there."""

    name: str
    kind: int
    bins: tuple[Bin, ...]
    cpu: int
    """Thousandths of a core free for replicas of this problem: what those of `running` ask is not taken off."""
    memory: int
    """The same in bytes of host memory."""
    product: str = ""
    cost: int = 1
    ready: bool = True
    """False: nothing may be placed there; what runs there must go elsewhere (a move)."""
    note: str = ""
    """Why it is not ready, for reasons."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What one replica asks of each of its GPUs on one kind of host. Bytes."""

    share: int
    overrun: int = 0


@dataclass(frozen=True, slots=True)
class Workload:
    """One model: `replicas` identical replicas."""

    key: str
    replicas: int
    gpus: int
    """Distinct GPUs of one host and product each replica takes."""
    demands: tuple[Demand | None, ...]
    """By host kind; None where it may not go."""
    spread: Spread = Spread.NONE
    priority: int = 0
    headroom: int = 0
    """Ten-thousandths of a GPU it wants promised to nobody; the largest among a GPU's tenants counts."""
    cpu: int = 0
    memory: int = 0
    namespace: str = ""
    same_island: bool = False
    """True: never across islands; False: preferred on one."""
    refused: tuple[str, ...] = ()
    """By host kind: why it may not go there, for reasons; may be empty."""
    unfit: tuple[str, ...] = ()
    """By host kind: why its engine could not run there with its share, for reasons; may be empty."""
    avoid: tuple[str, ...] = ()
    """GPUs it may not have: its engine failed there."""
    family: str = ""
    """Workloads of one family are replicas of one model that differ in what they ask: what spreads keeps apart from all of
    them. '' = of its own."""


@dataclass(frozen=True, slots=True)
class Placed:
    """One replica and its GPUs."""

    workload: str
    replica: int
    host: str
    gpus: tuple[str, ...]
    moved: bool = False
    moved_for: str = ""
    """The workload that needed its room, where it could have stayed."""


@dataclass(frozen=True, slots=True)
class Running:
    """A replica that has its GPUs now."""

    workload: str
    replica: int
    host: str
    gpus: tuple[str, ...]
    fixed: bool = False
    """It may not be moved at all (it is starting, or its model is mid-rollout)."""
    between: bool = False
    """Nothing runs there: its pod is gone and the next not made yet. It keeps the place from others, but takes it from nobody."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Everything the packer may know."""

    hosts: tuple[Host, ...]
    workloads: tuple[Workload, ...]
    running: tuple[Running, ...] = ()
    max_tenants: int = 16
    seed: int = 0
    iterations: int = 0
    """Improvement budget; 0 = the fast pass only."""
    moves_per_replica: int = 3
    moves: int = 0
    """Running replicas one plan may disturb (move or displace) to place others; 0 = none. What can stay nowhere
    near where it runs (node lost, share no longer fits) must move anyway and is not counted here."""
    move_equals: bool = False
    """True: equal priority may be moved (never displaced) too; False: only a lower priority yields."""
    grain: int = 1
    """Bytes that shares are whole multiples of: advice is too."""
    displacing: tuple[tuple[str, int], ...] = ()
    """(namespace, priority): replicas of this namespace may disturb those of others up to this priority; without an
    entry, only those of their own namespace."""


_CONSENT = {
    "": "",
    "moves": ": raise the number of moves a plan may make",
    "priority": ", whose priority is not lower: its owner must agree, or this one's priority be raised",
    "namespace": ", which is of another namespace: its owner must agree",
}


@dataclass(frozen=True, slots=True)
class Limit:
    """What keeps a replica off the hosts of one class, as data."""

    code: str
    """One of whynot.LIMITS, e.g. `Memory`."""
    hosts: int
    """How many hosts have this limit as the binding one."""
    nearest: str = ""
    """The one that came nearest; its GPUs' product."""
    product: str = ""
    needs: int = 0
    """Bytes, thousandths of a core, GPUs or tenants, as the code says."""
    has: int = 0


@dataclass(frozen=True, slots=True)
class Change:
    """The smallest change that would place a replica, as data."""

    code: str
    """`LessShare`, `FewerGPUs`, `Move` or `OtherProduct`."""
    share: int = 0
    """LessShare: bytes per GPU that would fit on `host`."""
    percent: int = 0
    """LessShare: the same as hundredths of a percent of that GPU's memory."""
    host: str = ""
    workload: str = ""
    """Move: the running replica that would have to go elsewhere."""
    replica: int = 0
    consent: str = ""
    """Move: whose leave it takes (`namespace`, or `priority` where only its equal or higher rank protects it)."""

    @property
    def text(self) -> str:
        """In words."""
        if self.code == "LessShare":
            return f"a share of {_percent(self.percent)} ({gib(self.share)}) would fit"
        if self.code == "FewerGPUs":
            return f"tensorParallelSize {self.share} would fit there if its share does"
        if self.code == "Move":
            moved = f"{self.workload} (replica {self.replica})"
            return f"it would fit if {moved} left {self.host}{_CONSENT[self.consent]}"
        return f"{self.host} has room, but its products or selector do not allow it there"


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a replica is unplaced, as data; `text` is made from it."""

    code: str
    said: str
    """The limit that binds, in words."""
    nearest: str = ""
    """The host that came nearest."""
    needs: int = 0
    has: int = 0
    limits: tuple[Limit, ...] = ()
    """Per class of hosts the one limit that binds, nearest miss first."""
    changes: tuple[Change, ...] = ()
    """What would place it, smallest first."""
    elsewhere: str = ""
    """Why GPUs of another product, empty ones maybe, are none for it, in words; '' = nothing to say of them."""
    displaced_by: str = ""
    """The workload that took its place, where it ran."""

    @property
    def text(self) -> str:
        """One sentence the user can act on."""
        taken = f"{self.displaced_by} has a higher priority and took its place" if self.displaced_by else ""
        return "; ".join(filter(None, (taken, self.said, *(change.text for change in self.changes), self.elsewhere)))


@dataclass(frozen=True, slots=True)
class Unplaced:
    """A replica that goes nowhere, and why."""

    workload: str
    replica: int
    reason: Reason


@dataclass(frozen=True, slots=True)
class Key:
    """The objective, smaller is better, compared in this order."""

    unplaced: tuple[tuple[int, int], ...]
    """(priority, replicas), highest priority first."""
    moves: int
    splits: int
    cost: int
    islands: int
    balance: int


@dataclass(frozen=True, slots=True)
class Fragmentation:
    """What a plan leaves."""

    free: int
    """Bytes that are left on GPUs of ready hosts."""
    stranded: int
    """Bytes of those that a replica like those of this problem could not use, on average."""
    groups: tuple[tuple[int, int], ...]
    """(size, how many more groups of clean GPUs of one island there are)."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The answer."""

    placements: tuple[Placed, ...]
    unplaced: tuple[Unplaced, ...]
    key: Key
    bound: int | None = None
    """Proven minimum cost of this problem, where one was computed."""
    bound_method: str = ""
    effort: int = 0
    """Improvement steps taken."""
    fragmentation: Fragmentation | None = None
    """How usable what is left is."""


def _percent(hundredths: int) -> str:
    whole, rest = divmod(hundredths, 100)
    return f"{whole}.{rest:02d}".rstrip("0").rstrip(".") + "%" if rest else f"{whole}%"
