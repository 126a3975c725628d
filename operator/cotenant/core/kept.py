"""A replica in back-off keeps its place: whoever finds none for lack of memory is told for whom GPUs are kept meanwhile."""

from __future__ import annotations

from dataclasses import replace

from cotenant.core.names import named_for
from cotenant.core.planning import Places
from cotenant.core.replica import Assigned, NoPlace, Replica

NAMED = 3


def told_who_waits(replicas: list[Replica], places: Places, waits: dict[str, NoPlace]) -> Places:
    """The same places, with the reasons of the unplaced naming those that wait."""
    keys = {key for key, wait in waits.items() if wait.reason == "BackOff"}
    if not keys:
        return places
    resting = [replica for replica in replicas if replica.key in keys]
    lacking = {
        replica.key: place
        for replica in replicas
        if isinstance(place := places.get(replica.key), NoPlace) and place.reason == "InsufficientMemory"
    }
    if not lacking:
        return places
    owners = {replica.key: replica.wanted.placement.namespace for replica in replicas if replica.key in lacking}
    told: Places = dict(places)
    for key, place in lacking.items():
        kept = [_kept(replica, owners[key], places, waits) for replica in resting[:NAMED]]
        more = f" and {len(resting) - NAMED} more" if len(resting) > NAMED else ""
        told[key] = replace(place, message=f"{place.message}; places are kept for {', '.join(kept)}{more}")
    return told


def _kept(replica: Replica, namespace: str, places: Places, waits: dict[str, NoPlace]) -> str:
    """One that waits; of other namespaces nothing is named."""
    wanted, place = replica.wanted, places.get(replica.key)
    where = f" on {place.allocation.node}" if isinstance(place, Assigned) else ""
    own = f"{wanted.placement.name}/{wanted.model.name}-{replica.index}"
    name = named_for(namespace, wanted.placement.namespace, own)
    return f"{name}{where}, which {waits[replica.key].message}"
