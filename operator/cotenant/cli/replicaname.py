"""How replicas are called: printed as `namespace/placement/model/index`, many of one model as `namespace/placement/model/0..9 (10)`."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from itertools import groupby

from cotenant.core.snapshot import Pod, Snapshot

ReplicaKey = tuple[str, str, str, int]
"""Namespace, placement, model, index."""


def named(key: ReplicaKey) -> str:
    """The one spelling that is printed."""
    return "/".join(map(str, key))


def key_of(pod: Pod) -> ReplicaKey:
    """The replica that a pod is."""
    return (pod.namespace, pod.placement, pod.model, pod.replica)


def together(keys: Iterable[ReplicaKey]) -> list[str]:
    """Their names; those of one model whose numbers follow each other as one."""
    found = []
    for model, mine in groupby(keys, key=lambda key: key[:3]):
        for _, run in groupby(enumerate(key[3] for key in mine), key=lambda pair: pair[1] - pair[0]):
            numbers = [number for _, number in run]
            found.append(series((*model, numbers[0]), len(numbers)))
    return found


def series(first: ReplicaKey, count: int) -> str:
    """`count` replicas of one model from this one on."""
    return named(first) if count == 1 else f"{named(first)}..{first[3] + count - 1} ({count})"


MANY = 5000
"""Names up to which all are compared to find one that is alike; of more, those of placements."""


# ------------------------------------------------------------------------------------------------------------- reading
Meant = tuple[str, str, str | None, int | None]
"""Namespace and placement; a model of it or all; a replica of that or all."""


def meant(text: str, seen: Snapshot, namespace: str) -> Meant | None:
    """What a person means by any of the spellings that are about: of this file, of a table, of a message, or a pod's name."""
    wanted = "/".join(text.replace(" ", "/").split("/")).removeprefix("pod/")
    spellings = _spellings(seen)
    return spellings.get(wanted) or spellings.get(f"{namespace}/{wanted}")


def near(text: str, seen: Snapshot, namespace: str) -> str:
    """The name that a person may have meant; '' = none is alike."""
    known = _spellings(seen)
    names = [name for name, that in known.items() if len(known) <= MANY or that[2] is None]
    for wanted in (text, f"{namespace}/{text}"):
        if found := get_close_matches(wanted, names, 1, 0.75):
            return "/".join(str(part) for part in known[found[0]] if part is not None)
    return ""


def _spellings(seen: Snapshot) -> dict[str, Meant]:
    """With the namespace in front, the clearest last: where two mean different things the clearer one counts."""
    pods: dict[str, Meant] = {f"{pod.namespace}/{pod.name}": key_of(pod) for pod in seen.pods if pod.placement}
    short: dict[str, Meant] = {}
    clear: dict[str, Meant] = {}
    for placement in seen.placements:
        clear["/".join(placement.key)] = (*placement.key, None, None)
        for model in placement.models:
            of = f"{placement.namespace}/{placement.name}"
            clear[f"{of}/{model.name}"] = (*placement.key, model.name, None)
            short[f"{of}-{model.name}"] = (*placement.key, model.name, None)
            for index in range(model.replicas):
                key = (*placement.key, model.name, index)
                clear[f"{of}/{model.name}/{index}"] = key
                short[f"{of}/{model.name}-{index}"] = key
                short[f"{of}-{model.name}-{index}"] = key
    return {**pods, **short, **clear}
