"""The cluster case by case: each placement with its pods. A case that did not change is not decided anew."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from cotenant.core.demand import Demands, Wanted
from cotenant.core.memo import Memo
from cotenant.core.snapshot import Pod

PodsByName = dict[tuple[str, str, str], Pod]
"""By namespace, name and the uid of the owning placement."""


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """One placement with the pods it owns."""

    wanted: tuple[Wanted, ...]
    """Its models: never none."""
    pods: tuple[Pod, ...]
    by_name: PodsByName = field(init=False)
    nodes: tuple[str, ...] = field(init=False)
    """Where its pods are, each once."""
    calm: bool = field(init=False)
    """All its pods serve, and no fault is remembered."""
    plain: bool = field(init=False)
    """All its pods carry its name in their label: nobody changed that."""

    def __post_init__(self) -> None:
        placement = self.wanted[0].placement
        by_name = {(pod.namespace, pod.name, pod.owner_uid): pod for pod in self.pods}
        nodes = dict.fromkeys(home(pod) for pod in self.pods)
        calm = not placement.status.faults and all(pod.ready and pod.is_alive for pod in self.pods)
        object.__setattr__(self, "by_name", by_name)
        object.__setattr__(self, "nodes", tuple(nodes))
        object.__setattr__(self, "calm", calm)
        object.__setattr__(self, "plain", all((pod.namespace, pod.placement) == placement.key for pod in self.pods))


def home(pod: Pod) -> str:
    """The node a pod is for; '' = nobody knows."""
    return pod.allocation.node if pod.allocation else pod.node or ""


def cases(demands: Demands, pods: tuple[Pod, ...], memo: Memo) -> tuple[Case, ...]:
    """Every placement that wants something, in the order of the demands."""
    owned: dict[str, list[Pod]] = {}
    for pod in pods:
        owned.setdefault(pod.owner_uid, []).append(pod)
    return tuple(
        memo.of("case", (*row, *mine), (), partial(Case, row, tuple(mine)))
        for row in demands.rows
        if row
        for mine in (owned.get(row[0].placement.uid, ()),)
    )


def pods_of(wanted: Wanted, index: int, pods: PodsByName) -> list[Pod]:
    """The pods of one replica: mostly one."""
    placement = wanted.placement
    names = wanted.names[index]
    return [pods[key] for name in names if (key := (placement.namespace, name, placement.uid)) in pods]
