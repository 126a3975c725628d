"""Why a replica is unplaced: per class of nodes the one limit that binds, the nearest miss, and what would place it.

Everything is data (`Limit`, `Change`); the sentence is made from it and never parsed.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from cotenant.core.packing.board import Board
from cotenant.core.packing.problem import Change, Limit, Reason
from cotenant.core.share import SCALE, gib

CLOSENESS = (
    "Memory", "Overrun", "Island", "HostCPU", "HostMemory", "Tenants", "SpreadGPU", "SpreadNode", "TooFewGPUs",
    "Avoided", "Refused", "NotReady", "NoNodes",
)  # fmt: skip
"""Limits, the nearest to a placement first: what a user can do least about comes last."""
MAX_JUDGED = 64
"""Hosts of a kind with room enough that are asked what else is in the way."""


@dataclass(frozen=True, slots=True)
class Miss:
    """What keeps a workload off one host."""

    code: str
    host: int
    needs: int = 0
    has: int = 0

    @property
    def rank(self) -> tuple[int, int, int]:
        """The nearest miss first."""
        return (CLOSENESS.index(self.code), -self.has, self.host)


class Survey:
    """A finished board, looked at once for all that is unplaced: hosts by the room they have for so many ranks."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self.by_kind: list[list[int]] = [[] for _ in board.kinds]
        self.not_ready: list[int] = []
        for host, kind in enumerate(board.host_kind):
            (self.by_kind[kind] if board.ready[host] else self.not_ready).append(host)
        self.ranked: dict[tuple[int, int, int, int], list[tuple[int, int]]] = {}

    def misses(self, w: int) -> list[tuple[Miss, int]]:
        """(nearest miss, how many hosts) per class of hosts."""
        found = [(_miss(self.board, w, h), 1) for h in self.not_ready]
        for kind, hosts in enumerate(self.by_kind):
            need = self.board.demand[w][kind]
            if not hosts:
                continue
            if need is None:
                found.append((Miss("Refused", hosts[0]), len(hosts)))
                continue
            ranked = self._ranked(w, kind, need[1])
            roomy = bisect_right(ranked, -need[0], key=lambda r: r[0])
            found += [(_miss(self.board, w, h), 1) for _, h in ranked[:roomy][:MAX_JUDGED]]
            if roomy < len(ranked):
                found.append((_miss(self.board, w, ranked[roomy][1]), len(ranked) - roomy))
            small = [h for h in hosts if len(self.board.host_gpus[h]) < self.board.size[w]]
            if small:
                most = max(small, key=lambda h: len(self.board.host_gpus[h]))
                found.append((_miss(self.board, w, most), len(small)))
        return found

    def _ranked(self, w: int, kind: int, overrun: int) -> list[tuple[int, int]]:
        """(minus the room for a whole replica, host), most room first."""
        board, size = self.board, self.board.size[w]
        key = (kind, board.headroom[w], overrun, size)
        if key not in self.ranked:
            found = []
            for host in self.by_kind[kind]:
                gpus = board.host_gpus[host]
                if len(gpus) >= size:
                    rooms = sorted((room_for(board, w, g) for g in gpus), reverse=True)
                    found.append((-rooms[size - 1], host))
            self.ranked[key] = sorted(found)
        return self.ranked[key]


def why_not(survey: Survey, r: int, displaced_by: str = "", others: tuple[Change, ...] = ()) -> Reason:
    """Why this replica goes nowhere on the board as it stands; `others`: changes found that would place it."""
    board = survey.board
    w = board.owner[r]
    misses = survey.misses(w)
    if not misses:
        return Reason("NoNodes", "there is no node with GPUs to place it on", displaced_by=displaced_by)
    classes: dict[tuple[str, str], list[tuple[Miss, int]]] = {}
    for miss, count in misses:
        classes.setdefault((miss.code, board.hosts[miss.host].product), []).append((miss, count))
    ranked = sorted(
        ((min((m for m, _ in found), key=lambda m: m.rank), sum(n for _, n in found)) for found in classes.values()),
        key=lambda c: c[0].rank,
    )
    limits = tuple(
        Limit(m.code, count, board.hosts[m.host].name, board.hosts[m.host].product, m.needs, m.has)
        for m, count in ranked
    )
    nearest = ranked[0][0]
    changes = (*_changes(board, nearest), *others)
    host = board.hosts[nearest.host].name
    said, elsewhere = _said(board, w, nearest), _unfit(board, w, ranked)
    return Reason(nearest.code, said, host, nearest.needs, nearest.has, limits, changes, elsewhere, displaced_by)


def room_for(board: Board, w: int, g: int) -> int:
    """The largest share that would fit on this GPU beside the workload's overrun and headroom; may be negative."""
    _, overrun = board.need(w, board.host[g]) or (0, 0)
    kept = max(board.kept[g], board.memory[g] * board.headroom[w] // SCALE)
    return min(board.promise[g] - kept, board.real[g] - overrun)


def _miss(board: Board, w: int, host: int) -> Miss:
    """The one limit that binds on this host."""
    need, size = board.need(w, host), board.size[w]
    gpus = board.host_gpus[host]
    if not board.ready[host]:
        return Miss("NotReady", host)
    if need is None:
        return Miss("Refused", host)
    if len(gpus) < size:
        return Miss("TooFewGPUs", host, size, len(gpus))
    if board.node_apart[w] and board.on_host[host].get(board.family[w]):
        return Miss("SpreadNode", host)
    away = [g for g in gpus if not board.beside_kin(w, g)]
    if len(away) < size:
        return Miss("SpreadGPU", host, size, len(away))
    healthy = [g for g in away if g not in board.avoid.get(w, ())]
    if len(healthy) < size:
        return Miss("Avoided", host, size, len(healthy))
    seats = [g for g in healthy if len(board.tenants[g]) < board.seats[g]]
    if len(seats) < size:
        return Miss("Tenants", host, board.max_tenants, len(seats))
    rooms = sorted((room_for(board, w, g) for g in seats), reverse=True)
    if rooms[size - 1] < need[0]:
        promised = sum(board.promise[g] - board.kept[g] >= need[0] for g in seats)
        return Miss("Overrun" if promised >= size and need[1] else "Memory", host, need[0], max(0, rooms[size - 1]))
    if board.cpu_need[w] > board.cpu[host]:
        return Miss("HostCPU", host, board.cpu_need[w], max(0, board.cpu[host]))
    if board.memory_need[w] > board.host_memory[host]:
        return Miss("HostMemory", host, board.memory_need[w], max(0, board.host_memory[host]))
    fitting = [g for g in seats if board.fits(w, g)]
    islands = [board.island[g] for g in fitting]
    most = max((islands.count(i) for i in islands), default=0)
    return Miss("Island", host, size, most)


def _changes(board: Board, nearest: Miss) -> list[Change]:
    changes = []
    grain = board.problem.grain
    room = nearest.has // grain * grain  # what is asked is rounded up to it
    if nearest.code in ("Memory", "Overrun") and room > 0:
        memory = max(board.memory[g] for g in board.host_gpus[nearest.host])
        changes.append(Change("LessShare", room, room * SCALE // memory, board.hosts[nearest.host].name))
    if nearest.code in ("Island", "TooFewGPUs") and nearest.has > 0:
        changes.append(Change("FewerGPUs", nearest.has, host=board.hosts[nearest.host].name))
    return changes


def _said(board: Board, w: int, miss: Miss) -> str:
    """The limit in words."""
    host, size = board.hosts[miss.host], board.size[w]
    on = "on a GPU" if size == 1 else f"on {size} GPUs of one node"
    its = "" if size == 1 else f" on {size}"
    if miss.code == "Memory":
        text = f"needs {gib(miss.needs)} {on}; {host.name} has the most, {gib(miss.has)}{its}"
    elif miss.code == "Overrun":
        _, overrun = board.need(w, miss.host) or (0, 0)
        text = (
            f"needs {gib(miss.needs)} {on} and {gib(overrun)} more that an engine uses beyond its share; "
            f"{host.name} has the most, {gib(miss.has)}{its} beside that"
        )
    elif miss.code == "Island":
        text = f"needs {size} GPUs of one NVLink island; {host.name} has {miss.has} with room"
    elif miss.code == "HostCPU":
        text = f"needs {miss.needs / 1000:g} CPUs of the node; {host.name} has {miss.has / 1000:g} left"
    elif miss.code == "HostMemory":
        text = f"needs {gib(miss.needs)} of the node's memory; {host.name} has {gib(miss.has)} left"
    elif miss.code == "Tenants":
        text = f"every GPU it fits on has {miss.needs} tenants already, the most allowed"
    elif miss.code == "SpreadGPU":
        text = f"needs {size} GPUs without another replica of it; {host.name} has {miss.has}"
        text += "; use fewer replicas or spread: None"
    elif miss.code == "SpreadNode":
        text = "every node it fits on has a replica of it; use fewer replicas or spread: GPU"
    elif miss.code == "TooFewGPUs":
        text = f"needs {size} GPUs of one node; {host.name} has {miss.has}"
    elif miss.code == "Avoided":
        text = f"its engine failed on the GPUs of {host.name}, and no other node has {size} for it"
    elif miss.code == "Refused":
        refused = board.workloads[w].refused
        why = refused[host.kind] if host.kind < len(refused) else ""
        text = "no node may take it" + (f": {why}" if why else "; its selector or products match none")
    else:
        text = f"no node it may go to is ready ({host.name}: {host.note or 'not ready'})"
    return text


def _unfit(board: Board, w: int, ranked: list[tuple[Miss, int]]) -> str:
    """Why GPUs of another product, empty ones maybe, are none for it: its share there is too small for its engine."""
    unfit = board.workloads[w].unfit
    for miss, _ in ranked:
        host = board.hosts[miss.host]
        if miss.code == "Refused" and unfit and unfit[host.kind]:
            return f"on {host.product or host.name} {unfit[host.kind]}"
    return ""
