"""Whether everything fits without touching what runs: depth first, tightest spots first, no dead end entered twice."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from cotenant.core.packing.board import Board, Spot

MAX_GPUS = 128
"""Larger clusters are left to the search: there a dead end costs more than it teaches."""
MAX_FREE = 200
MAX_SPOTS = 2000
"""Spots of one host that are looked at for one replica; hosts with more are not searched to the end."""
SPOTS_A_NODE = 20
"""So many spots take as long as one node."""

HostState = tuple[object, ...]


class Fitting:
    """Tries to place all of `free` (unplaced on this board); leaves them placed when it can."""

    def __init__(self, board: Board, free: list[int], nodes: int) -> None:
        self.board = board
        self.nodes = nodes
        largest = [max((d[0] for d in ds if d), default=0) for ds in board.demand]
        self.order = sorted(
            free,
            key=lambda r: (-board.size[board.owner[r]] * largest[board.owner[r]], -largest[board.owner[r]], r),
        )
        self.dead: set[tuple[object, ...]] = set()
        self.apart = {board.family[board.owner[r]] for r in free if board.apart[board.owner[r]]}

    def place(self) -> bool:
        """True when everything has a place now; False when that is impossible or was not found in time."""
        if not self._hopeful():
            return False
        self.states = [repr(self._state(h)) for h in range(len(self.board.hosts))]
        return self._descend(0)

    @property
    def gave_up(self) -> bool:
        """Whether the nodes ran out, so that nothing is proven."""
        return self.nodes <= 0

    def _hopeful(self) -> bool:
        board = self.board
        asked = sum(
            board.size[w] * min((d[0] for d in board.demand[w] if d), default=0)
            for w in map(board.owner.__getitem__, self.order)
        )
        room = sum(max(0, board.index.room(g)) for g in range(len(board.uuid)) if board.ready[board.host[g]])
        return asked <= room and all(board.index.spot(w) for w in sorted({board.owner[r] for r in self.order}))

    def _descend(self, at: int) -> bool:
        if at == len(self.order):
            return True
        self.nodes -= 1
        if self.nodes <= 0:
            return False
        board, r = self.board, self.order[at]
        here = (at, *sorted(self.states))
        if here in self.dead:
            return False
        for spot in self._spots(board.owner[r]):
            host = board.host[spot[0]]
            before = self.states[host]
            board.place(r, spot)
            self.states[host] = repr(self._state(host))
            if self._descend(at + 1):
                return True
            board.remove(r)
            self.states[host] = before
            if self.nodes <= 0:
                return False
        self.dead.add(here)
        return False

    def _state(self, host: int) -> HostState:
        board = self.board
        gpus = tuple(sorted((self._gpu_state(g) for g in board.host_gpus[host]), key=repr))
        there = board.on_host[host]
        apart = tuple(sorted(family for family in self.apart if there.get(family)))
        return (board.host_kind[host], board.ready[host], board.cpu[host], board.host_memory[host], apart, gpus)

    def _gpu_state(self, g: int) -> tuple[object, ...]:
        board = self.board
        apart = tuple(sorted(board.family[w] for w in board.models[g] if board.family[w] in self.apart))
        island = board.island[g] - board.island[board.host_gpus[board.host[g]][0]]
        avoided = tuple(w for w, gpus in board.avoid.items() if g in gpus)
        left = (board.promise[g], board.real[g], board.kept[g], len(board.tenants[g]), board.memory[g])
        return (*left, apart, island, avoided, board.outside[g])

    def _spots(self, w: int) -> Iterator[Spot]:
        """Spots that differ in what they leave, tightest first."""
        board, size = self.board, self.board.size[w]
        seen: set[str] = set()
        found: list[tuple[int, Spot]] = []
        for host, state in enumerate(self.states):
            if board.need(w, host) is None or not board.host_fits(w, host):
                continue
            gpus = [g for g in board.host_gpus[host] if board.fits(w, g)]
            alike = {g: repr(self._gpu_state(g)) for g in gpus}
            groups: dict[str, list[int]] = {}
            for g in gpus:
                groups.setdefault(alike[g], []).append(g)
            for spot in islice(_choices(list(groups.values()), size), MAX_SPOTS):
                if board.workloads[w].same_island and board.splits_on(spot):
                    continue
                what = repr((state, sorted(alike[g] for g in spot)))
                if what not in seen:
                    seen.add(what)
                    found.append((sum(board.index.room(g) for g in spot), spot))
        self.nodes -= len(found) // SPOTS_A_NODE
        found.sort()
        return iter([spot for _, spot in found])


def _choices(groups: list[list[int]], size: int) -> Iterator[Spot]:
    """Ways to take so many GPUs that differ in how many of each group they take; of a group always the first."""
    if not groups:
        if not size:
            yield ()
        return
    first, rest = groups[0], groups[1:]
    for number in range(min(size, len(first)), -1, -1):
        if size - number <= sum(map(len, rest)):
            for others in _choices(rest, size - number):
                yield tuple(sorted((*first[:number], *others)))
