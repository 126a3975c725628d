"""One replica that is wanted, and what a plan may say of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from cotenant.core.demand import Wanted
from cotenant.core.estimate.modelconfig import ModelConfig
from cotenant.core.share import Bytes, Percent
from cotenant.core.snapshot import Allocation, Learned, Pod
from cotenant.core.vllm import Engine


@dataclass(frozen=True, slots=True)
class Replica:
    """One replica that is wanted, with what its pod, its faults and earlier starts say of where it may be."""

    wanted: Wanted
    index: int
    pod: Pod | None = None
    share: Bytes | Percent | None = None
    """Another share than the spec's: what remedies have come to."""
    avoid: tuple[str, ...] = ()
    """GPUs it failed on."""
    wait_for_free: int = 0
    """Bytes that must be free on each GPU before its next start."""
    yielded_to: bool = False
    """Its remedy is that tenants of lower priority make room for it."""
    reserve: int = 0
    """Bytes of each GPU that are kept free for it beside its share and overrun: what they are to give up."""
    engine: Engine | None = None
    """Another engine block than the spec's: what remedies have made of it."""
    successor: bool = False
    """It is to take over from the pod that serves now, which leaves once this one is ready (SurgeIfRoom)."""
    refused: bool = False
    """The API server refuses to create its pod (a quota, Pod Security): it gets the place that nobody else wants."""
    config: ModelConfig | None = None
    """Of its model, where it could be read."""
    learned: tuple[Learned, ...] = ()
    """What earlier starts of its model taught."""
    key: str = field(init=False)
    """`namespace/placement/model/index`, of a successor with a mark."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", f"{self.wanted.key}/{self.index}" + ("+" if self.successor else ""))

    @property
    def origin(self) -> str:
        """The key without that mark: faults and their back-off are of both, whoever died."""
        return f"{self.wanted.key}/{self.index}"

    @property
    def takes_what_is_left(self) -> bool:
        """It takes nobody's place: what it is to succeed still serves, or nothing would be gained by it."""
        return self.refused or (self.successor and not (self.pod is not None and self.pod.ready))

    @property
    def asks_alone(self) -> bool:
        """It may ask for something else than the other replicas of its model."""
        return bool(self.share or self.avoid or self.reserve or self.engine or self.successor or self.refused)


Crew = tuple[Replica, ...]
"""The replicas of one placement: the same object between passes while nothing about them changes."""


@dataclass(frozen=True, slots=True)
class NoPlace:
    """Why a replica has no GPU."""

    reason: str
    message: str
    waiting: bool = False
    """It has a place, or will have one without anybody's doing."""
    stuck: bool = False
    """It waits for what does not come without somebody's doing."""
    displaced: bool = False
    """A replica of higher priority has its place: it must leave."""
    percent: int = 0
    """The share of this kind of GPU that would do; 0 = not known, or none would."""


@dataclass(frozen=True, slots=True)
class Assigned:
    """A replica's place in the plan."""

    allocation: Allocation
    max_model_len: int | None = None
    """The context `share: auto` was sized for, to be rendered."""
    stays: bool = False
    """It is left as it runs, whatever its spec asks by now."""
