"""Rings of changes that wait for each other: an old engine that may go only once another replica serves, and that replica's start,
which has no room until the old one has gone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cotenant.core.drift import Leave, Start
from cotenant.core.ledger import NOISE, Account, context
from cotenant.core.replica import Replica

Crowded = Mapping[str, Sequence[tuple[Start, str]]]
"""By model: starts with a GPU of theirs (its UUID) that has no room for them until a tenant leaves it."""


def needed_on(start: Start, account: Account) -> int:
    """Bytes that must be free on this GPU before a start."""
    allocation = start.allocation
    beside = context(start.replica.wanted.model.tensor_parallel)
    # asked for when it died, maybe on a GPU of another size: here it is its share here, and what it takes beside
    all_of_it = allocation.bytes + max(allocation.overrun, beside)
    # an empty GPU never reads quite empty
    return max(allocation.bytes + beside, min(start.replica.wait_for_free, all_of_it, account.device.usable - NOISE))


def is_crowded(start: Start, account: Account) -> bool:
    """Whether there is no room for a start until a tenant that serves leaves: not only until memory is given back."""
    return account.free_soon() < needed_on(start, account)


def kept_out_by(leave: Leave, held_up: Sequence[Leave], crowded: Crowded) -> list[Replica]:
    """Replicas of its model that cannot come before this pod has gone, by whatever detour over others that are `held_up`."""
    if leave.replica is None:
        return []
    holders: dict[str, list[Leave]] = {}
    for other in held_up:
        for uuid in other.pod.allocation.gpus if other.pod.allocation else ():
            holders.setdefault(uuid, []).append(other)

    def waits_for_it(uuid: str) -> bool:
        seen, next_ = {uuid}, [uuid]
        while next_:
            for other in holders.get(next_.pop(), ()):
                if other is leave:
                    return True
                beyond = {gpu for _, gpu in crowded.get(other.replica.wanted.key, ())} if other.replica else set()
                next_.extend(beyond - seen)
                seen |= beyond
        return False

    mine = crowded.get(leave.replica.wanted.key, ())
    return list({start.replica.key: start.replica for start, uuid in mine if waits_for_it(uuid)}.values())
