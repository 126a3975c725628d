"""Where the replicas go: orders to place them in, and improvement by taking some out and placing them again."""

from __future__ import annotations

from cotenant.core.board import Board


def by_size(board: Board, replicas: list[int]) -> list[int]:
    """Highest priority first, then larger groups, then larger shares, then the workloads with most replicas apart."""
    largest = [max((d[0] for d in ds if d), default=0) for ds in board.demand]

    def rank(r: int) -> tuple[int, int, int, int]:
        w = board.owner[r]
        return (-board.priority[w], -board.size[w], -largest[w], r)

    return sorted(replicas, key=rank)


def place_all(board: Board, replicas: list[int]) -> list[int]:
    """Place these in this order, each on its best spot; returns those that fit nowhere."""
    left = []
    for r in replicas:
        spot = board.index.spot(board.owner[r])
        if spot:
            board.place(r, spot)
        else:
            left.append(r)
    return left
