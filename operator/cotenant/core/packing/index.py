"""Finding the best spot in microseconds: open GPUs by room, clean GPUs by island; groups ask core.packing.domains."""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import TYPE_CHECKING

from cotenant.core.packing.domains import PARTS, Domains, Skip

if TYPE_CHECKING:
    from cotenant.core.packing.board import Board, Spot

BIG_ISLAND = 4
"""Islands of this many GPUs are kept closed to single-GPU replicas while another GPU will do."""


def _never() -> bool:
    return False


class Index:
    """Kept true by the board; answers `one` and `group`."""

    def __init__(self, board: Board, built: bool = True) -> None:
        self.board = board
        self.built = built
        if not built:
            return
        self.count = max(1, len(board.uuid))
        kinds = max(1, len(board.kinds))
        self.least_cpu = min(board.cpu_need, default=0)
        self.least_memory = min(board.memory_need, default=0)
        self.usable = [self._is_usable(h) for h in range(len(board.hosts))]
        self.open: list[list[int]] = [[] for _ in range(kinds)]
        """Per kind: room * count + GPU, of GPUs that cost nothing more to use."""
        self.largest = [1] * kinds
        """Per kind: the largest GPU's memory."""
        for g, host in enumerate(board.host):
            kind = board.host_kind[host]
            self.largest[kind] = max(self.largest[kind], board.memory[g])
        self.code = [-1] * len(board.uuid)
        self._build_cells()
        self.domains = [Domains(board, whole) for whole in (False, True)]
        self._learn_all()
        for cell in range(len(self.clean)):
            self._rank(cell)

    def _is_usable(self, host: int) -> bool:
        board = self.board
        return board.ready[host] and board.cpu[host] >= self.least_cpu and board.host_memory[host] >= self.least_memory

    def _build_cells(self) -> None:
        """Cells: clean GPUs of one island, one size and one price; classes: cells of one kind, price and size."""
        board = self.board
        cells: dict[tuple[int, int, int], int] = {}
        classes: dict[tuple[int, int, int], int] = {}
        self.cell = [0] * len(board.uuid)
        self.cell_class: list[int] = []
        self.cell_island: list[int] = []
        self.classes: list[tuple[int, int, int, list[int]]] = []
        """(kind, price, memory, cells best first as rank codes)."""
        self.clean: list[list[int]] = []
        for g in range(len(board.uuid)):
            price, memory = board.price[g], board.memory[g]
            key = (board.island[g], price, memory)
            if key not in cells:
                cells[key] = len(self.clean)
                self.clean.append([])
                of = (board.host_kind[board.host[g]], price, memory)
                if of not in classes:
                    classes[of] = len(self.classes)
                    self.classes.append((*of, []))
                self.cell_class.append(classes[of])
                self.cell_island.append(board.island[g])
            self.cell[g] = cells[key]
        self.cell_rank = [-1] * len(self.clean)
        self.classes_of: list[list[int]] = [[] for _ in self.open]
        for number in sorted(range(len(self.classes)), key=lambda c: self.classes[c][:3]):
            self.classes_of[self.classes[number][0]].append(number)

    # ------------------------------------------------------------------------------------------------- staying true
    def _learn_all(self) -> None:
        """What `_learn` does, for every GPU at once: sorted in the end instead of kept sorted."""
        board = self.board
        for g, tenants in enumerate(board.tenants):
            host = board.host[g]
            if not self.usable[host]:
                continue
            if not tenants and board.price[g]:
                self.clean[self.cell[g]].append(g)
            elif len(tenants) < board.seats[g] and (room := self.room(g)) >= 0:
                self.code[g] = room * self.count + g
                self.open[board.host_kind[host]].append(self.code[g])
        for pool in self.open:
            pool.sort()

    def forget(self, g: int) -> None:
        """The GPU is about to change."""
        if not self.built:
            return
        code = self.code[g]
        if code >= 0:
            pool = self.open[self.board.host_kind[self.board.host[g]]]
            del pool[bisect_left(pool, code)]
            self.code[g] = -1
            return
        clean = self.clean[self.cell[g]]
        at = bisect_left(clean, g)
        if at < len(clean) and clean[at] == g:
            del clean[at]

    def learn(self, g: int) -> None:
        """The GPU has changed."""
        if not self.built:
            return
        self.forget(g)
        self._learn(g)
        self._rank(self.cell[g])
        for domains in self.domains:
            domains.dirty.add(g)

    def _learn(self, g: int) -> None:
        board = self.board
        host = board.host[g]
        if not self.usable[host]:
            return
        if not board.tenants[g] and board.price[g]:
            insort(self.clean[self.cell[g]], g)
        elif len(board.tenants[g]) < board.seats[g]:
            room = self.room(g)
            if room >= 0:
                code = room * self.count + g
                insort(self.open[board.host_kind[host]], code)
                self.code[g] = code

    def room(self, g: int) -> int:
        """An upper bound of the share that fits on this GPU; exact when all overruns are equal."""
        board = self.board
        promised = board.promise[g] - board.kept[g]
        real = board.real[g] - board.least_overrun
        return promised if promised < real else real

    def _rank(self, cell: int) -> None:
        """Opened islands first, then those with the fewest clean GPUs."""
        ranked = self.classes[self.cell_class[cell]][3]
        if self.cell_rank[cell] >= 0:
            del ranked[bisect_left(ranked, self.cell_rank[cell])]
            self.cell_rank[cell] = -1
        clean = len(self.clean[cell])
        if clean:
            island = self.cell_island[cell]
            rank = (0 if self.board.island_use[island] else 1 + (clean >= BIG_ISLAND)) * 4096 + clean
            self.cell_rank[cell] = rank * len(self.clean) + cell
            insort(ranked, self.cell_rank[cell])

    def host_changed(self, host: int) -> None:
        """Its CPU or memory changed: GPUs of a host that can start nothing more are not looked at."""
        if not self.built:
            return
        usable = self._is_usable(host)
        if usable is self.usable[host]:
            return
        gpus = self.board.host_gpus[host]
        self.usable[host] = usable
        for g in gpus:
            self.forget(g)
            self._learn(g)
            self._rank(self.cell[g])

    # ------------------------------------------------------------------------------------------------------- asking
    def spot(self, w: int, skip: Skip = _never, by_share: bool = False, only: int | None = None) -> Spot:
        """The best GPUs for one replica of `w` (on hosts of kind `only`), or () when it fits nowhere."""
        if self.board.size[w] == 1:
            return self.one(w, skip, by_share, only)
        return self.group(w, skip, by_share, only)

    def _needs(self, w: int, only: int | None) -> list[tuple[int, tuple[int, int]]]:
        """(kind of hosts, what a rank needs there)."""
        demand = self.board.demand[w]
        if only is not None:
            return [(only, need)] if (need := demand[only]) else []
        return [(kind, need) for kind, need in enumerate(demand) if need]

    def one(self, w: int, skip: Skip = _never, by_share: bool = False, only: int | None = None) -> Spot:
        """The open GPU that is left with the least, else the cheapest clean one."""
        board = self.board
        needs = self._needs(w, only)
        best, best_score = -1, 0
        for kind, need in needs:
            pool = self.open[kind]
            for at in range(bisect_left(pool, need[0] * self.count), len(pool)):
                room, g = divmod(pool[at], self.count)
                if board.fits(w, g) and board.host_fits(w, board.host[g]) and not skip():
                    left = need[0] * board.hosts[board.host[g]].cost if by_share else room - need[0]
                    score = left * 1_000_000 // max(1, board.memory[g])
                    if best < 0 or score < best_score:
                        best, best_score = g, score
                    break
        return (best,) if best >= 0 else self._clean_one(w, needs, by_share)

    def _clean_one(self, w: int, needs: list[tuple[int, tuple[int, int]]], by_share: bool) -> Spot:
        board = self.board
        shunned = board.avoid.get(w, frozenset()) if board.avoid else frozenset()
        best: tuple[int, int, int, int] | None = None
        for kind, need in needs:
            for number in self.classes_of[kind]:
                _, price, memory, ranked = self.classes[number]
                if by_share:
                    price = price * need[0] * PARTS // max(1, memory)
                elif best is not None and price > best[0]:
                    break
                for code in ranked:
                    rank, cell = divmod(code, len(self.clean))
                    g = next((other for other in self.clean[cell] if other not in shunned), -1)
                    if g < 0 or not board.host_fits(w, board.host[g]):
                        continue
                    if board.fits(w, g):
                        found = (price, rank, memory - need[0], g)
                        best = found if best is None else min(best, found)
                    break
        return (best[3],) if best else ()

    def group(self, w: int, skip: Skip = _never, by_share: bool = False, only: int | None = None) -> Spot:
        """The best GPUs for a tensor parallel group: one island, cheapest, tightest; else across islands of a host."""
        needs = self._needs(w, only)
        for domains in self.domains[: 1 if self.board.workloads[w].same_island else 2]:
            found = domains.best(w, skip, needs, by_share)
            if found:
                return found
        return ()
