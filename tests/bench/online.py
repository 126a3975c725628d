"""FGD's policy (Weng et al., USENIX ATC'23): replicas one at a time, as they come. Cotenant's packer plans them together."""

from __future__ import annotations

from heapq import heappop, heappush

from cotenant.core.packing.board import Board, Spot
from cotenant.core.packing.fragmentation import Mix

FINENESS = 40
"""What is stranded counts in this part of a GPU; what is equal so far goes by the tightest fit (measured on openb:
finer or coarser places less)."""


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
