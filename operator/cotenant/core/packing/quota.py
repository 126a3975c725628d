"""From the configuration LP to a placement: what it puts on each kind of GPU is that kind's quota.

Where products differ, "the cheapest that fits" fills cheap GPUs with what leaves them half empty; the LP sees which
shares go well together on which product.
"""

from __future__ import annotations

from cotenant.core.packing.board import Spot
from cotenant.core.packing.bound import Relaxation
from cotenant.core.packing.search import Search


def by_quota(search: Search, relaxation: Relaxation) -> None:
    """Place everything anew so, and keep it where it is better."""
    if len(search.board.index.open) == 1:
        return
    before, spots = search.mark(), search.spots()
    for r in search.free:
        search.take(r)
    place_by_quota(search, relaxation)
    search.effort.spend(len(search.free))
    if search.mark() >= before:
        search.restore(spots)


def place_by_quota(search: Search, relaxation: Relaxation) -> None:
    """Place all free replicas, the large first, on the kind of host whose quota has most left; the rest anywhere."""
    board, quota = search.board, relaxation.quotas()

    def rank(r: int) -> tuple[int, ...]:
        w = board.owner[r]
        return (-board.priority[w], -board.size[w], -search.largest[w], w, r)

    rest = []
    for at, r in enumerate(sorted(search.free, key=rank)):
        if at % 1024 == 1023 and search.effort.is_late():
            return
        w = board.owner[r]
        item = relaxation.items[relaxation.item_of[w]]
        spot = _spot(search, r, quota[item.row], board.size[w] * item.weight)
        if spot:
            search.put(r, spot)
        else:
            rest.append(r)
    search.place_all(rest)


def _spot(search: Search, r: int, left: dict[int, float], takes: float) -> Spot:
    """Where it runs now, else the best of the kind with most quota left, which it takes; () where none has enough."""
    board, w = search.board, search.board.owner[r]
    if board.home[r] and board.can_stand(w, board.home[r]):
        return board.home[r]
    for kind in sorted(left, key=lambda k: (-left[k], k)):
        if left[kind] < takes / 2:
            return ()
        spot = board.index.spot(w, only=kind)
        if spot:
            left[kind] -= takes
            return spot
    return ()
