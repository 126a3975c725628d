"""The one move that would place what is unplaced, and whose leave it takes; and nodes that only the model's own spec bars."""

from __future__ import annotations

from cotenant.core.packing.board import Board
from cotenant.core.packing.making_room import MakingRoom
from cotenant.core.packing.problem import Change

MAX_TRIED = 300
"""Replicas tried for one workload, the lowest in priority and the smallest first."""


def one_move(board: Board, rules: MakingRoom, w: int) -> Change | None:
    """A replica whose going elsewhere would let `w` in; the board is left as it was."""
    largest = [max((d[0] for d in ds if d), default=0) for ds in board.demand]
    movable = [r for r, spot in enumerate(board.spot) if spot and not board.fixed[r] and board.owner[r] != w]
    movable.sort(key=lambda r: (board.priority[board.owner[r]], -largest[board.owner[r]], r))
    seen: set[tuple[int, int]] = set()
    for r in movable:
        # replicas of one workload on one host are much the same
        alike = (board.owner[r], board.host[board.spot[r][0]])
        if alike in seen or board.need(w, alike[1]) is None:
            continue
        seen.add(alike)
        if len(seen) > MAX_TRIED:
            return None
        if _would_do(board, w, r):
            consent = (rules.protection(w, r) or "moves") if board.runs[r] else ""
            host = board.hosts[alike[1]].name
            return Change(
                "Move", host=host, workload=board.workloads[alike[0]].key, replica=board.number[r], consent=consent
            )
    return None


def _would_do(board: Board, w: int, r: int) -> bool:
    before = board.spot[r]
    board.remove(r)
    spot = board.index.spot(w)
    works = False
    if spot:
        # any unplaced replica of w stands for all of them
        guest = next(x for x in range(board.first[w], len(board.owner)) if not board.spot[x])
        board.place(guest, spot)
        works = bool(board.index.spot(board.owner[r]))
        board.remove(guest)
    board.place(r, before)
    return works


def other_product(board: Board, w: int) -> Change | None:
    """A host with room that the model's own products or selector bar."""
    asked = [d[0] for d in board.demand[w] if d]
    if not asked:
        return None
    for host, kind in enumerate(board.host_kind):
        if board.demand[w][kind] is None and board.ready[host]:
            rooms = [min(board.promise[g] - board.kept[g], board.real[g]) for g in board.host_gpus[host]]
            if sum(room >= max(asked) for room in rooms) >= board.size[w]:
                return Change("OtherProduct", max(asked), host=board.hosts[host].name)
    return None
