"""ModelPlacements -> what is wanted: one Wanted per model, with what makes it impossible said at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from itertools import chain

from cotenant.core.memo import Memo
from cotenant.core.snapshot import Model, Placement, Policy

SUCCESSOR = "-b"


@dataclass(frozen=True, slots=True)
class Issue:
    """Something in a spec that only a person can put right."""

    path: str
    reason: str
    """CamelCase."""
    message: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """One model of one placement that is to run."""

    placement: Placement
    model: Model
    position: int
    """Index in spec.models, for paths."""
    key: str = field(init=False)
    """`namespace/placement/model`."""
    base: str = field(init=False)
    """The name of its Service, and of its pods before the replica's number."""
    names: tuple[tuple[str, str], ...] = field(init=False)
    """By replica: both names its pods may have."""
    service: tuple[str, str] = field(init=False)
    """Namespace and name of its Service."""

    def __post_init__(self) -> None:
        base = f"{self.placement.name}-{self.model.name}"
        object.__setattr__(self, "base", base)
        object.__setattr__(self, "service", (self.placement.namespace, base))
        names = tuple((f"{base}-{index}", f"{base}-{index}{SUCCESSOR}") for index in range(self.model.replicas))
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "key", f"{self.placement.namespace}/{self.placement.name}/{self.model.name}")

    @property
    def path(self) -> str:
        """Where it stands in the spec."""
        return f"spec.models[{self.position}]"

    def pod_name(self, index: int) -> str:
        """Name of one replica's pod: the same at every try, so that a repeated create cannot make a twin."""
        return f"{self.base}-{index}"


@dataclass(frozen=True, slots=True)
class Demands:
    """What is wanted, and what is wrong with the rest."""

    rows: tuple[tuple[Wanted, ...], ...]
    """Placement by placement."""
    issues: dict[str, tuple[Issue, ...]]
    """By `namespace/placement`."""
    blocked: frozenset[str]
    """Keys of models among `wanted` that may not start because of an issue; what runs of them stays."""
    frozen: frozenset[str]
    """`namespace/placement` whose spec cannot be read: what runs of them stays exactly as it is."""
    wanted: tuple[Wanted, ...] = field(init=False)
    """Every model."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "wanted", tuple(chain.from_iterable(self.rows)))


def demand(placements: tuple[Placement, ...], policy: Policy, memo: Memo) -> Demands:
    """Every model of every placement that is not being deleted, oldest placement first."""
    rows: list[tuple[Wanted, ...]] = []
    issues: dict[str, list[Issue]] = {}
    blocked: set[str] = set()
    frozen: set[str] = set()
    names: dict[tuple[str, str], str] = {}
    engines = {engine.name for engine in policy.engines}
    for placement in sorted(placements, key=lambda p: (p.created, p.namespace, p.name)):
        owner = f"{placement.namespace}/{placement.name}"
        if placement.deleting:
            continue
        if placement.invalid:
            frozen.add(owner)
            issues.setdefault(owner, []).append(Issue(placement.invalid.path, "InvalidSpec", placement.invalid.reason))
            continue
        row = memo.of("wanted", (placement,), (), partial(_row, placement))
        rows.append(row)
        for entry in row:
            first = names.setdefault(entry.service, entry.key)
            if first == entry.key and (not engines or entry.model.engine.name in engines):
                continue
            issues.setdefault(owner, []).extend(_issues(entry, first, engines))
            blocked.add(entry.key)
    return Demands(
        tuple(rows), {key: tuple(found) for key, found in issues.items()}, frozenset(blocked), frozenset(frozen)
    )


def _row(placement: Placement) -> tuple[Wanted, ...]:
    return tuple(Wanted(placement, model, position) for position, model in enumerate(placement.models))


def _issues(entry: Wanted, first: str, engines: set[str]) -> list[Issue]:
    found = []
    if first != entry.key:
        found.append(
            Issue(
                f"{entry.path}.name",
                "NameTaken",
                f'its pods would be called "{entry.base}-N" like those of {first}; rename the model or the placement',
            )
        )
    if engines and entry.model.engine.name not in engines:
        found.append(
            Issue(
                f"{entry.path}.engine.name",
                "UnknownEngine",
                f'the operator has no engine "{entry.model.engine.name}"; it has {", ".join(sorted(engines))}',
            )
        )
    return found
