"""How much of what is free nobody could use: FGD's measure (Weng et al., USENIX ATC'23), on memory; and groups that fit.

For one kind of replica, what is free on a host is stranded where a rank does not fit on that GPU, or all of it where
the replica does not fit on the host. The measure is the mean over a mix of replicas.
"""

from __future__ import annotations

from cotenant.core.packing.board import Board
from cotenant.core.packing.problem import Fragmentation

GROUPS = (2, 4, 8)
"""Sizes of tensor parallel groups that are counted."""

TYPICAL = 40
"""Workloads of the problem that a plan is judged by, those with most replicas."""

State = tuple[int, int, int, tuple[int, ...]]
"""A host: kind, CPU and memory left, room of its GPUs sorted."""


class Mix:
    """Kinds of replicas that are expected, each with its weight; judges hosts by what they could not take of it."""

    def __init__(self, board: Board, weights: dict[int, int]) -> None:
        """`weights`: by workload of this board."""
        self.board = board
        self.total = max(1, sum(weights.values()))
        kinds = len(board.kinds)
        self.by_share: list[dict[int, list[tuple[int, int, int, int]]]] = [{} for _ in range(kinds)]
        """By kind and share: (ranks, CPU, memory, weight)."""
        self.barred = [0] * kinds
        """By kind: weight of what may not go there at all."""
        for w, weight in sorted(weights.items()):
            for kind in range(kinds):
                need = board.demand[w][kind]
                if need is None:
                    self.barred[kind] += weight
                else:
                    ask = (board.size[w], board.cpu_need[w], board.memory_need[w], weight)
                    self.by_share[kind].setdefault(need[0], []).append(ask)
        self.known: dict[State, int] = {}

    def state(self, host: int) -> State:
        """What matters of a host."""
        board = self.board
        rooms = sorted(max(0, board.promise[g] - board.kept[g]) for g in board.host_gpus[host])
        return (board.host_kind[host], board.cpu[host], board.host_memory[host], tuple(rooms))

    def stranded(self, state: State) -> int:
        """Bytes a replica of the mix could not use there, times the total weight."""
        if state not in self.known:
            if len(self.known) > 200_000:
                self.known.clear()
            self.known[state] = self._stranded(state)
        return self.known[state]

    def _stranded(self, state: State) -> int:
        kind, cpu, memory, rooms = state
        free = sum(rooms)
        total = self.barred[kind] * free
        for share, asks in self.by_share[kind].items():
            below = fitting = 0
            for room in rooms:
                if room < share:
                    below += room
                else:
                    fitting += 1
            for ranks, cores, bytes_, weight in asks:
                fits = fitting >= ranks and cores <= cpu and bytes_ <= memory
                total += weight * (below if fits else free)
        return total


def measure(board: Board) -> Fragmentation:
    """What the board leaves, judged by its own replicas."""
    weights: dict[int, int] = {}
    for w in board.owner:
        weights[w] = weights.get(w, 0) + 1
    typical = sorted(weights, key=lambda w: (-weights[w], w))[:TYPICAL]
    weights = {w: weights[w] for w in typical}
    mix = Mix(board, weights)
    free = stranded = 0
    groups = dict.fromkeys(GROUPS, 0)
    for host in range(len(board.hosts)):
        if not board.ready[host]:
            continue
        state = mix.state(host)
        free += sum(state[3])
        stranded += mix.stranded(state)
        clean: dict[int, int] = {}
        for g in board.host_gpus[host]:
            if not board.tenants[g] and board.promise[g] == board.memory[g]:
                clean[board.island[g]] = clean.get(board.island[g], 0) + 1
        for size in GROUPS:
            groups[size] += sum(count // size for count in clean.values())
    return Fragmentation(free, stranded // mix.total, tuple(groups.items()))
