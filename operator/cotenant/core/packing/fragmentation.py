"""How much of what is free nobody could use: FGD's measure (Weng et al., USENIX ATC'23), on memory; and groups that fit.

For one kind of replica, what is free on a host is stranded where a rank does not fit on that GPU, or all of it where
the replica does not fit on the host. The measure is the mean over a mix of replicas.
"""

from __future__ import annotations

from heapq import heappop, heappush

from cotenant.core.packing.board import Board, Spot
from cotenant.core.packing.problem import Fragmentation

GROUPS = (2, 4, 8)
"""Sizes of tensor parallel groups that are counted."""

TYPICAL = 40
"""Workloads of the problem that a plan is judged by, those with most replicas."""

FINENESS = 40
"""What is stranded counts in this part of a GPU; what is equal so far goes by the tightest fit (measured on openb:
finer or coarser places less)."""

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


class Online:
    """Places replicas one at a time where they strand least of a mix (FGD's policy), ties by the tightest fit."""

    def __init__(self, board: Board, mix: Mix) -> None:
        self.board, self.mix = board, mix
        self.grain = max(1, mix.total * max(board.memory, default=1) // FINENESS)
        self.changed: list[int] = []
        self.stamp = [0] * len(board.hosts)
        self.read: dict[int, int] = {}
        self.heaps: dict[int, list[tuple[int, int, int, int, int]]] = {}
        """By workload: (growth, room on the GPUs, room on the host, host, stamp)."""

    def touch(self, host: int) -> None:
        """The host has changed."""
        self.stamp[host] += 1
        self.changed.append(host)

    def spot(self, w: int) -> Spot:
        """Where to place one more replica of `w`; () when it fits nowhere."""
        heap = self.heaps.setdefault(w, [])
        hosts = range(len(self.board.hosts)) if w not in self.read else set(self.changed[self.read[w] :])
        self.read[w] = len(self.changed)
        for host in hosts:
            found = self._judge(w, host)
            if found:
                heappush(heap, (*found[:3], host, self.stamp[host]))
        while heap:
            _, _, _, host, stamp = heap[0]
            if stamp == self.stamp[host]:
                found = self._judge(w, host)
                if found:
                    return found[3]
            heappop(heap)
        return ()

    def _judge(self, w: int, host: int) -> tuple[int, int, int, Spot] | None:
        """(growth of what is stranded, room on the GPUs taken and on the host, the GPUs) of the best spot there."""
        board, size = self.board, self.board.size[w]
        need = board.need(w, host)
        if need is None or not board.host_fits(w, host):
            return None
        rooms = {g: board.promise[g] - board.kept[g] for g in board.host_gpus[host]}
        fitting = sorted((room, g) for g, room in rooms.items() if board.fits(w, g))
        if len(fitting) < size:
            return None
        before = self.mix.state(host)
        now = self.mix.stranded(before)
        best: tuple[int, int, int, Spot] | None = None
        singles = [[f] for at, f in enumerate(fitting) if not at or fitting[at - 1][0] != f[0]]
        choices = [fitting[:size]] if size > 1 else singles
        for choice in choices:
            spot = tuple(sorted(g for _, g in choice))
            left = sorted(room - need[0] if g in spot else max(0, room) for g, room in rooms.items())
            after = (before[0], before[1] - board.cpu_need[w], before[2] - board.memory_need[w], tuple(left))
            growth = (self.mix.stranded(after) - now) // self.grain
            found = (growth, sum(room for room, _ in choice), sum(before[3]), spot)
            best = found if best is None else min(best, found)
        return best
