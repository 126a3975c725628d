"""Why a replica is where it is: the best other place on the finished plan, and on which line of the key it loses."""

from __future__ import annotations

from dataclasses import dataclass

from cotenant.core.packing.board import Board, Spot
from cotenant.core.packing.problem import Plan, Problem
from cotenant.core.share import gib

LINES = ("splits", "cost", "islands", "room")
"""What places are compared by, in the order of the key; room is bytes left on the GPUs taken: less is tighter."""


@dataclass(frozen=True, slots=True)
class Why:
    """What won, as data; `text` is made from it."""

    code: str
    """`Stays` (it ran here), `OnlyPlace`, `Better` (won on `line`), `Alike` (as good as the next) or `Together` (alone it
    would lie better elsewhere; the plan as a whole is better so)."""
    line: str = ""
    """The first line of the key on which this place and the next best differ."""
    ours: int = 0
    theirs: int = 0
    other: str = ""
    """The host of the next best place."""

    @property
    def text(self) -> str:
        """One sentence."""
        if self.code == "Stays":
            return "it runs here, and what runs stays"
        if self.code == "OnlyPlace":
            return "no other place has room"
        if self.code == "Alike":
            return f"as good as the next best place, on {self.other}"
        ours, theirs = (gib(self.ours), gib(self.theirs)) if self.line == "room" else (str(self.ours), str(self.theirs))
        words = {
            "splits": f"spans islands {ours} times, {theirs} on {self.other}",
            "cost": f"opens GPUs for {ours}, on {self.other} for {theirs}",
            "islands": f"touches {ours} islands anew, {theirs} on {self.other}",
            "room": f"leaves {ours} on its GPUs, {theirs} on {self.other}",
        }[self.line]
        return words if self.code == "Better" else f"{words}; with it elsewhere the others would fit worse"


def on_board(problem: Problem, plan: Plan) -> Board:
    """The plan on a board, to ask about it."""
    board = Board(problem)
    gpus = {(host.name, board.uuid[g]): g for h, host in enumerate(board.hosts) for g in board.host_gpus[h]}
    numbers = {(board.workloads[w].key, board.number[r]): r for r, w in enumerate(board.owner)}
    running = {(r.workload, r.replica) for r in problem.running}
    for placed in plan.placements:
        r = numbers[placed.workload, placed.replica]
        board.place(r, tuple(sorted(gpus[placed.host, uuid] for uuid in placed.gpus)))
        board.runs[r] = (placed.workload, placed.replica) in running and not placed.moved
    board.build_index()
    return board


def why_here(board: Board, r: int) -> Why:
    """Why replica `r` is where this board has it; the board is left as it was."""
    if board.runs[r]:
        return Why("Stays")
    w, here = board.owner[r], board.spot[r]
    board.remove(r)
    ours = _lines(board, w, here)
    best: tuple[tuple[int, ...], int] | None = None
    for host in range(len(board.hosts)):
        spot = _best_on(board, w, host, here)
        if spot:
            found = (_lines(board, w, spot), host)
            best = found if best is None else min(best, found)
    board.place(r, here)
    if best is None:
        return Why("OnlyPlace")
    theirs, host = best
    name = board.hosts[host].name
    for line, mine, other in zip(LINES, ours, theirs, strict=True):
        if mine != other:
            return Why("Better" if mine < other else "Together", line, mine, other, name)
    return Why("Alike", other=name)


def _lines(board: Board, w: int, spot: Spot) -> tuple[int, ...]:
    share, _ = board.need(w, board.host[spot[0]]) or (0, 0)
    clean = [g for g in spot if not board.tenants[g]]
    anew = {board.island[g] for g in spot if not board.island_use[board.island[g]]}
    left = sum(board.promise[g] - board.kept[g] - share for g in spot)
    return (int(board.splits_on(spot)), sum(board.price[g] for g in clean), len(anew), left)


def _best_on(board: Board, w: int, host: int, here: Spot) -> Spot:
    """The best place of this host other than `here`; ()."""
    if board.need(w, host) is None or not board.host_fits(w, host):
        return ()
    fitting = sorted(
        (0 if board.tenants[g] else board.price[g], board.promise[g] - board.kept[g], g)
        for g in board.host_gpus[host]
        if board.fits(w, g)
    )
    size = board.size[w]
    groups: dict[int, list[int]] = {}
    for _, _, g in fitting:
        groups.setdefault(board.island[g], []).append(g)
    tries = [gpus for gpus in groups.values() if len(gpus) >= size]
    if not board.workloads[w].same_island:
        tries.append([g for _, _, g in fitting])
    best: tuple[tuple[int, ...], Spot] | None = None
    for gpus in tries:
        for at in range(len(gpus) - size + 1):
            spot = tuple(sorted(gpus[at : at + size]))
            if spot != here:
                found = (_lines(board, w, spot), spot)
                best = found if best is None else min(best, found)
                break
    return best[1] if best else ()
