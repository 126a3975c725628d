"""How replicas are called: printed as `namespace/placement/model/index`, many of one model as `namespace/placement/model/0..9 (10)`."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from cotenant.core.snapshot import Pod

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
