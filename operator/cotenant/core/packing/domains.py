"""Where tensor parallel groups go: domains that look the same (the same sorted tuple of rooms) are judged once.

A domain is a set of GPUs a group may take without spanning islands (an island), or a whole host when nothing else is left.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cotenant.core.packing.board import Board, Spot

Skip = Callable[[], bool]
"""Asked per candidate; True passes over a good one (the noise of the search)."""

PARTS = 1 << 10
"""What part of a GPU a share is, is counted in these."""

Signature = tuple[tuple[int, int, int], ...]
"""Per GPU of a domain that takes another tenant: price of opening it, room, whether its island is untouched; sorted."""

Score = tuple[int, int, int, int]
"""Price, untouched islands, bytes left on the GPUs taken, GPUs that could take another such rank; smaller is better."""


class Domains:
    """Islands (or whole hosts) in buckets by what their GPUs have left; refreshed only when asked."""

    def __init__(self, board: Board, whole: bool) -> None:
        self.board = board
        self.whole = whole
        self.dirty: set[int] = set()
        self.members: list[list[int]] | None = None
        self.buckets: list[dict[Signature, list[int]]] = []
        self.memo: dict[tuple[int, int, int], dict[Signature, Score | None]] = {}

    def _build(self) -> list[list[int]]:
        board = self.board
        members: list[list[int]] = []
        self.of = [-1] * len(board.uuid)
        for gpus in board.host_gpus:
            islands: dict[int, list[int]] = {}
            for g in gpus:
                islands.setdefault(board.island[g], []).append(g)
            if self.whole:
                found = [list(gpus)] if len(islands) > 1 else []
            else:
                found = [i for i in islands.values() if len(i) > 1]
            for domain in found:
                for g in domain:
                    self.of[g] = len(members)
                members.append(domain)
        self.signature: list[Signature | None] = [None] * len(members)
        self.buckets = [{} for _ in board.index.open]
        for number in range(len(members)):
            self._refresh(number, members[number])
        self.dirty.clear()
        return members

    def _refresh(self, number: int, gpus: list[int]) -> None:
        board = self.board
        bucket = self.buckets[board.host_kind[board.host[gpus[0]]]]
        old = self.signature[number]
        if old is not None:
            same = bucket[old]
            del same[bisect_left(same, number)]
            if not same:
                del bucket[old]
        sig = []
        for g in gpus:
            if len(board.tenants[g]) < board.seats[g]:
                price = 0 if board.tenants[g] else board.price[g]
                sig.append((price, max(0, board.index.room(g)), 0 if board.island_use[board.island[g]] else 1))
        sig.sort()
        signature = tuple(sig)
        self.signature[number] = signature
        insort(bucket.setdefault(signature, []), number)

    def best(self, w: int, skip: Skip, needs: list[tuple[int, tuple[int, int]]], by_share: bool) -> Spot:
        """The best GPUs of the best domain, or ()."""
        board = self.board
        if self.members is None:
            self.members = self._build()
        for number in {self.of[g] for g in self.dirty}:
            if number >= 0:
                self._refresh(number, self.members[number])
        self.dirty.clear()
        size = board.size[w]
        scored: list[tuple[Score, int, Signature]] = []
        for kind, need in needs:
            memo = self.memo.setdefault((kind, need[0], size), {})
            part = need[0] * PARTS // board.index.largest[kind] if by_share else 1
            for signature in self.buckets[kind]:
                if signature in memo:
                    score = memo[signature]
                else:
                    score = memo[signature] = _score(signature, need[0], size)
                if score is not None:
                    scored.append(((score[0] * part, *score[1:]), kind, signature))
        if not scored:
            return ()
        first = min(scored)
        found = self._take(w, first, skip)
        if found:
            return found
        for candidate in sorted(scored)[1:]:
            found = self._take(w, candidate, skip)
            if found:
                return found
        return ()

    def _take(self, w: int, candidate: tuple[Score, int, Signature], skip: Skip) -> Spot:
        board = self.board
        assert self.members is not None
        for number in self.buckets[candidate[1]][candidate[2]]:
            gpus = self.members[number]
            if not board.host_fits(w, board.host[gpus[0]]) or skip():
                continue
            fitting = sorted(
                (0 if board.tenants[g] else board.price[g], 0 if board.island_use[board.island[g]] else 1,
                 board.index.room(g), g)
                for g in gpus if board.fits(w, g)
            )  # fmt: skip
            if len(fitting) >= board.size[w]:
                return tuple(sorted(f[3] for f in fitting[: board.size[w]]))
        return ()


def _score(signature: Signature, share: int, size: int) -> Score | None:
    fitting = [gpu for gpu in signature if gpu[1] >= share]
    if len(fitting) < size:
        return None
    taken = fitting[:size]
    return (
        sum(gpu[0] for gpu in taken),
        max(gpu[2] for gpu in taken),
        sum(gpu[1] - share for gpu in taken),
        len(fitting),
    )
