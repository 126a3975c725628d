"""Placing what fits nowhere by disturbing what runs: few, lower in priority, of different models, and told for whom."""

from __future__ import annotations

from itertools import combinations

from cotenant.core.packing.board import Spot
from cotenant.core.packing.search import Search

MAX_OPTIONS = 32
"""Sets of victims really tried for one replica, the smallest first."""
MAX_COMBINATIONS = 600
"""Sets of victims looked at on one GPU."""

MAX_ASIDE = 500
"""Replicas that are new and lower in priority, taken out of the way of one that is higher."""


class MakingRoom:
    """Works on a search's board; `disturbed` says for whom each running replica was taken from where it ran."""

    def __init__(self, search: Search) -> None:
        self.search = search
        self.board = search.board
        self.problem = search.board.problem
        self.disturbed: dict[int, int] = {}
        """Replica -> the workload that needed its room."""
        self.models = {
            self.board.owner[r]
            for r, runs in enumerate(self.board.runs)
            if runs and self.board.spot[r] != self.board.home[r]
        }
        """Workloads with a replica that is on the move already: never two of one at once."""
        self.reach = dict(self.problem.displacing)

    def run(self) -> None:
        """Place what can be placed this way, highest priority first."""
        board = self.board
        hopeless: set[int] = set()
        waiting = sorted(
            board.unplaced(), key=lambda r: (-board.priority[board.owner[r]], -board.size[board.owner[r]], r)
        )
        for r in waiting:
            w = board.owner[r]
            if w in hopeless or r in self.disturbed or not self._victims_exist(w):
                continue
            spot = board.index.spot(w)
            if spot:
                self.search.put(r, spot)
            elif not self._make_room(r) and not self._over_lower(r):
                hopeless.add(w)

    def go_home(self) -> None:
        """Send back whoever fits where it ran."""
        for r in sorted(self.disturbed):
            home = self.board.home[r]
            now = self.search.take(r)
            if self.board.can_stand(self.board.owner[r], home):
                self.search.put(r, home)
                self.disturbed.pop(r)
            elif now:
                self.search.put(r, now)

    # ------------------------------------------------------------------------------------------------------- who
    def may_disturb(self, w: int, victim: int) -> bool:
        """Whether workload `w` may disturb this running replica, by priority and namespace."""
        return not self.protection(w, victim) and not self.board.fixed[victim]

    def protection(self, w: int, victim: int) -> str:
        """What protects a running replica from `w`: '', `priority` or `namespace`."""
        ours, theirs = self.board.workloads[w], self.board.workloads[self.board.owner[victim]]
        if theirs.priority > ours.priority or (theirs.priority == ours.priority and not self.problem.move_equals):
            return "priority"
        if theirs.namespace != ours.namespace and self.reach.get(ours.namespace, -(1 << 62)) < theirs.priority:
            return "namespace"
        return ""

    def _victims_exist(self, w: int) -> bool:
        if len(self.disturbed) >= self.problem.moves:
            return False
        lowest = min((self.board.priority[self.board.owner[r]] for r in self._running()), default=None)
        ours = self.board.priority[w]
        return lowest is not None and (lowest < ours or (lowest == ours and self.problem.move_equals))

    def _running(self) -> list[int]:
        return [r for r, runs in enumerate(self.board.runs) if runs and not self.board.fixed[r]]

    def _candidates(self, w: int, g: int) -> list[int]:
        board = self.board
        return [
            r
            for r in board.tenants[g]
            if board.runs[r]
            and board.spot[r] == board.home[r]
            and board.owner[r] not in self.models
            and self.may_disturb(w, r)
        ]

    # ------------------------------------------------------------------------------------------------------- how
    def _make_room(self, r: int) -> bool:
        board, w = self.board, self.board.owner[r]
        limit = min(self.problem.moves_per_replica, self.problem.moves - len(self.disturbed))
        if limit <= 0:
            return False
        options = self.options(w, limit)
        before = self.search.mark()
        best = None
        for victims in options[:MAX_OPTIONS]:
            places = self._try(r, victims)
            if places is not None:
                mark = self.search.mark()
                if mark < before and (best is None or mark < best[0]):
                    best = (mark, victims, places)
            self._undo(r, victims)
        if best is None:
            return False
        _, victims, places = best
        for v in victims:
            self.search.take(v)
        for x, spot in places:
            self.search.put(x, spot)
        for v in victims:
            if board.spot[v] != board.home[v]:
                self.disturbed[v] = w
                self.models.add(board.owner[v])
                self.search.free.append(v)
        return True

    def _over_lower(self, r: int) -> bool:
        """The same with what is new and lower in priority out of the way; it goes back, or where it still fits."""
        board, search = self.board, self.search
        rank = board.priority[board.owner[r]]
        lower = [
            x for x in search.free
            if board.spot[x] and board.priority[board.owner[x]] < rank and x not in self.disturbed and not board.home[x]
        ]  # fmt: skip
        if not lower or len(lower) > MAX_ASIDE:
            return False
        spots = {x: search.take(x) for x in lower}
        spot = board.index.spot(board.owner[r])
        if spot:
            search.put(r, spot)
        else:
            self._make_room(r)
        for x in sorted(lower, key=lambda x: (-board.priority[board.owner[x]], -board.size[board.owner[x]], x)):
            if board.can_stand(board.owner[x], spots[x]):
                search.put(x, spots[x])
        search.place_all(sorted(lower, key=lambda x: (-board.priority[board.owner[x]], -board.size[board.owner[x]], x)))
        return bool(board.spot[r])

    def options(self, w: int, limit: int) -> list[tuple[int, ...]]:
        """Sets of up to `limit` running replicas whose leaving lets `w` in, the least harm first."""
        board = self.board
        found: set[tuple[int, ...]] = set()
        for host in range(len(board.hosts)):
            if not board.ready[host] or board.need(w, host) is None or len(board.host_gpus[host]) < board.size[w]:
                continue
            if board.node_apart[w] and board.on_host[host].get(board.family[w]):
                continue
            gpus = list(board.host_gpus[host])
            if board.size[w] == 1:
                for g in gpus:
                    found.update(self._sets(w, g, limit))
            else:
                islands: dict[int, list[int]] = {}
                for g in gpus:
                    islands.setdefault(board.island[g], []).append(g)
                domains = [i for i in islands.values() if len(i) >= board.size[w]]
                if len(islands) > 1 and not board.workloads[w].same_island:
                    domains.append(gpus)
                for domain in domains:
                    victims = self._for_group(w, domain, limit)
                    if victims:
                        found.add(victims)

        def harm(victims: tuple[int, ...]) -> tuple[object, ...]:
            ranks = sorted((board.priority[board.owner[v]] for v in victims), reverse=True)
            sizes = sum(max((d[0] for d in board.demand[board.owner[v]] if d), default=0) for v in victims)
            return (len(victims), ranks, sizes, victims)

        return sorted(found, key=harm)

    def _sets(self, w: int, g: int, limit: int) -> list[tuple[int, ...]]:
        """The smallest sets of tenants of this GPU that let one rank of `w` in; none when it fits already."""
        board, host = self.board, self.board.host[g]
        candidates = self._candidates(w, g)
        if not candidates or board.beside_kin(w, g):
            return []
        share, overrun = board.need(w, host) or (0, 0)
        # headroom may shrink when a tenant leaves, so this asks for no more than the largest room that could be
        short = share - board.promise[g]
        short_real = share + overrun - board.real[g]
        tried = 0
        found: list[tuple[int, ...]] = []
        for size in range(1, limit + 1):
            for victims in combinations(candidates, size):
                if len({board.owner[v] for v in victims}) < size:
                    continue
                needs = [board.need(board.owner[v], host) or (0, 0) for v in victims]
                if sum(n[0] for n in needs) < short or sum(n[0] + n[1] for n in needs) < short_real:
                    continue
                tried += 1
                if tried > MAX_COMBINATIONS:
                    return found
                spots = [(v, board.remove(v)) for v in victims]
                if board.fits(w, g) and board.host_fits(w, host):
                    found.append(tuple(sorted(victims)))
                for v, spot in reversed(spots):
                    board.place(v, spot)
            if found:
                break
        return found

    def _for_group(self, w: int, domain: list[int], limit: int) -> tuple[int, ...]:
        """A small set whose leaving lets a whole group of `w` into these GPUs; () when there is none."""
        board = self.board
        gone: list[tuple[int, Spot]] = []
        while len([g for g in domain if board.fits(w, g)]) < board.size[w]:
            left = limit - len(gone)
            models = {board.owner[v] for v, _ in gone}
            sets = [
                (len(s), sum(board.priority[board.owner[v]] for v in s), g, s)
                for g in domain
                if left > 0 and not board.fits(w, g)
                for s in self._sets(w, g, left)[:4]
                if not models & {board.owner[v] for v in s}
            ]
            if not sets:
                break
            gone += [(v, board.remove(v)) for v in min(sets)[3]]
        ready = [g for g in domain if board.fits(w, g)]
        works = len(ready) >= board.size[w] and board.host_fits(w, board.host[domain[0]])
        for v, spot in reversed(gone):
            board.place(v, spot)
        return tuple(sorted(v for v, _ in gone)) if works else ()

    def _try(self, r: int, victims: tuple[int, ...]) -> list[tuple[int, Spot]] | None:
        """Without the victims: place `r`, then each victim elsewhere; the places, or None when it may not be."""
        board, search = self.board, self.search
        for v in victims:
            search.take(v)
        spot = board.index.spot(board.owner[r])
        if not spot:
            return None
        search.put(r, spot)
        places = [(r, spot)]
        for v in sorted(victims, key=lambda v: (-board.priority[board.owner[v]], -board.size[board.owner[v]], v)):
            spot = search.spot(v)
            if spot:
                search.put(v, spot)
                places.append((v, spot))
            elif board.priority[board.owner[v]] >= board.priority[board.owner[r]]:
                return None
        return places

    def _undo(self, r: int, victims: tuple[int, ...]) -> None:
        self.search.take(r)
        for v in victims:
            self.search.take(v)
        for v in victims:
            self.search.put(v, self.board.home[v])
