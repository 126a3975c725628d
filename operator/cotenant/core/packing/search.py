"""Where the free replicas go: orders to place them in, then improvement by taking some out and placing them again.

Free is what does not run, or cannot stay where it runs. What runs is never touched here (see core.making_room).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from cotenant.core.packing.board import Board, Spot
from cotenant.core.packing.chance import Chance
from cotenant.core.packing.columns import PRICE_SCALE

Mark = tuple[tuple[tuple[int, int], ...], int, int, int, int, int]
"""What the search compares: the key without balance, and how well the room left lies together; smaller is better."""

SMALL = 6000
"""Placements every plan may try, even without an improvement budget."""

PATIENCE = 150
"""Steps without success after the proven minimum is reached: islands may still be saved."""

WIDE = 32
"""GPUs whose replicas are placed again in one step, and as many as one node has."""
STUCK = 60
"""Steps without success after which a dearer one is tried."""
ASTRAY = 400
"""Steps a dearer one has to lead to something better."""


class Effort:
    """How much may still be tried: placements attempted, and whether the caller lets us go on."""

    def __init__(self, limit: int, keep_going: Callable[[], bool] | None = None) -> None:
        self.limit = limit
        self.spent = 0
        self.keep_going = keep_going
        self.stopped = False

    def spend(self, amount: int) -> bool:
        """Count this; False once it is time to stop."""
        self.spent += amount
        return not self.is_late() and self.spent < self.limit

    def is_late(self) -> bool:
        """Whether the caller wants an end."""
        if self.keep_going is not None and not self.stopped:
            self.stopped = not self.keep_going()
        return self.stopped


class Search:
    """One board, its free replicas and the best placement of them so far."""

    def __init__(self, board: Board, free: list[int], effort: Effort, seed: int) -> None:
        self.board = board
        self.free = free
        self.effort = effort
        self.chance = Chance(seed)
        self.unplaced: dict[int, int] = {}
        """Free replicas without a place, and where they stand in `waiting`."""
        self.waiting: list[int] = []
        self.missing: dict[int, int] = {}
        for r in free:
            if not board.spot[r]:
                self._miss(r)
        self.elsewhere = [r for r in board.unplaced() if r not in self.unplaced]
        self.largest = [max((d[0] for d in ds if d), default=0) for ds in board.demand]
        self.worth = [0] * len(board.workloads)
        """What a rank is worth of what its GPU costs, in cost units / PRICE_SCALE; the LP's prices where they are known."""
        self.homes = [r for r in free if board.home[r]]
        """What ran on a GPU that could not hold all that did, and may go back."""
        self.noise = 0
        self.kept = False
        """Whether there is a placement of everything to come back to."""

    # ------------------------------------------------------------------------------------------------------- marks
    def mark(self) -> Mark:
        """How good the board is."""
        board = self.board
        missing = tuple(sorted((m for m in self.missing.items() if m[1]), reverse=True))
        return (missing, board.moves, board.splits, board.cost, board.islands, -board.lumps)

    def spots(self) -> list[Spot]:
        """Where the free replicas are, to come back to."""
        return [self.board.spot[r] for r in self.free]

    def restore(self, spots: list[Spot]) -> None:
        """Come back to it."""
        changed = [(r, spot) for r, spot in zip(self.free, spots, strict=True) if self.board.spot[r] != spot]
        for r, _ in changed:
            self.take(r)
        for r, spot in changed:
            if spot:
                self.put(r, spot)

    def take(self, r: int) -> Spot:
        """Unplace a replica if it is placed."""
        if not self.board.spot[r]:
            return ()
        self._miss(r)
        return self.board.remove(r)

    def put(self, r: int, spot: Spot) -> None:
        """Place an unplaced replica."""
        self.board.place(r, spot)
        self.found(r)

    def _miss(self, r: int) -> None:
        priority = self.board.priority[self.board.owner[r]]
        self.missing[priority] = self.missing.get(priority, 0) + 1
        self.unplaced[r] = len(self.waiting)
        self.waiting.append(r)

    def found(self, r: int) -> None:
        """An unplaced replica has a place now."""
        at = self.unplaced.pop(r, None)
        if at is None:
            return
        self.missing[self.board.priority[self.board.owner[r]]] -= 1
        last = self.waiting.pop()
        if last != r:
            self.waiting[at] = last
            self.unplaced[last] = at

    # ------------------------------------------------------------------------------------------------------- orders
    def orders(self) -> Iterator[tuple[str, list[int], bool]]:
        """(name, order, whether the cheapest share wins over the tightest fit)."""
        board = self.board
        allowed = [sum(d is not None for d in ds) for ds in board.demand]
        wanted = {board.owner[r] for r in self.free}

        def order(rank: Callable[[int], tuple[int, ...]]) -> list[int]:
            ranks = {w: (-board.priority[w], *rank(w), w) for w in wanted}
            return sorted(self.free, key=lambda r: (ranks[board.owner[r]], r))

        size, share, count = board.size, self.largest, [w.replicas for w in board.workloads]
        by_size = order(lambda w: (-size[w], -share[w], -count[w]))
        yield ("size", by_size, False)
        if self.homes:
            yield ("anew", by_size, False)
        yield ("cheapest", by_size, True)
        yield ("apart", order(lambda w: (-size[w], -count[w] if board.apart[w] else 0, -share[w])), False)
        scarce = order(lambda w: (allowed[w], -size[w], -share[w]))
        yield ("scarce", scarce, False)
        yield ("volume", order(lambda w: (-size[w] * share[w], -size[w])), False)
        yield ("smallest", order(lambda w: (size[w] * share[w], size[w])), False)
        yield ("scarce-cheapest", scarce, True)

    def place_all(self, order: list[int], cheapest: bool = False) -> None:
        """Place these in this order, each on its best spot; ends early where time is up and there is something to keep."""
        board = self.board
        for at, r in enumerate(order):
            if at % 1024 == 1023 and self.kept and self.effort.is_late():
                return
            if not board.spot[r]:
                spot = self.spot(r, cheapest)
                if spot:
                    self.put(r, spot)

    def spot(self, r: int, cheapest: bool = False) -> Spot:
        """The best spot now: home, else what the index finds, with the search's noise."""
        board = self.board
        home = board.home[r]
        if home and board.can_stand(board.owner[r], home):
            return home
        if not self.noise:
            return board.index.spot(board.owner[r], by_share=cheapest)
        found = board.index.spot(board.owner[r], self._skip, cheapest)
        return found or board.index.spot(board.owner[r], by_share=cheapest)

    def _skip(self) -> bool:
        return self.chance.below(100) < self.noise

    def construct(self) -> None:
        """The best of several orders; one when the problem is large and the budget is not."""
        best: tuple[Mark, list[Spot]] | None = None
        board = self.board
        allowance = max(SMALL, self.effort.limit // 4)
        for name, order, cheapest in self.orders():
            if best is not None:
                if len(self.free) * 2 > allowance or self.effort.stopped or self.settled(best[0]):
                    break
                if name in ("cheapest", "scarce-cheapest") and len(self.board.index.open) == 1:
                    continue
                if name == "smallest" and not best[0][0]:
                    continue
                for r in self.free:
                    self.take(r)
            if name != "anew":
                self.place_all([r for r in self.homes if board.can_stand(board.owner[r], board.home[r])])
            self.place_all(order, cheapest)
            self.effort.spend(len(order))
            allowance -= len(order)
            mark = self.mark()
            if best is None or mark < best[0]:
                best = (mark, self.spots())
                self.kept = True
        if best is not None:
            self.restore(best[1])

    def settled(self, mark: Mark) -> bool:
        """Whether nothing can be better: all placed on GPUs that were open before."""
        return not mark[0] and mark[2] == 0 and mark[3] == 0

    # --------------------------------------------------------------------------------------------------- improvement
    def improve(self, floor: int) -> None:
        """Take out what lies on a few GPUs and place it again, keep what is not worse; stops at the proven minimum."""
        if not self.free or not self.board.hosts:
            return
        now = self.mark()
        best = (now, self.spots())
        idle = stray = 0
        stuck, astray = max(STUCK, len(self.free)), max(ASTRAY, 2 * len(self.free))
        dearest = max(self.board.price, default=0)
        while self.effort.spend(1):
            at_floor = not best[0][0] and best[0][2] == 0 and best[0][3] <= floor
            if at_floor and (best[0][4] <= 1 or idle + stray > PATIENCE):
                break
            taken = self._choose()
            saved = [(r, self.take(r)) for r in taken]
            if self.unplaced and self.chance.below(2):
                saved += self._force(self.chance.one_of(self.waiting))
                taken = [r for r, _ in saved]
            self._put_back(taken)
            self.effort.spend(len(taken))
            after = self.mark()
            idle = 0 if after[:5] < now[:5] else idle + 1
            # stuck: one step that costs up to a GPU more is kept, and undone as a whole if it leads nowhere
            kick = idle > stuck and after[:3] == now[:3] and after[3] <= best[0][3] + dearest
            alike = after[:4] == now[:4] and self.chance.below(4) == 0
            if after <= now or alike or kick:
                idle = 0 if kick else idle
                now = after
                if now[:5] < best[0][:5]:
                    best, stray = (now, self.spots()), 0
            else:
                for r in taken:
                    self.take(r)
                for r, spot in saved:
                    if spot:
                        self.put(r, spot)
            stray += now[:5] != best[0][:5]
            if stray > astray:
                self.restore(best[1])
                now, stray, idle = self.mark(), 0, 0
        if best[0] < self.mark():
            self.restore(best[1])

    def repair(self, steps: int) -> None:
        """Improve until everything is placed or the steps are spent, beside the caller's budget."""
        budget = self.effort
        self.effort = Effort(steps, budget.keep_going)
        self.improve(1 << 62)
        budget.spent += self.effort.spent
        self.effort = budget

    def _choose(self) -> list[int]:
        """Free replicas on one badly used GPU and on a few others, and some of the unplaced."""
        board, chance = self.board, self.chance
        gpus: list[int] = []
        for step in range(1 + chance.below(8)):
            if len(gpus) > WIDE:
                break
            candidates = [chance.one_of(self.free) for _ in range(1 if step else 6)]
            spots = [board.spot[r] for r in candidates if board.spot[r]]
            if not spots:
                continue
            spot = max(spots, key=self._waste) if len(spots) > 1 else spots[0]
            if not step and chance.below(6) == 0:
                # a whole node, so that its replicas may change the product
                gpus += board.host_gpus[board.host[spot[0]]]
            elif chance.below(4) == 0:
                gpus += [g for g in board.host_gpus[board.host[spot[0]]] if board.island[g] == board.island[spot[0]]]
            else:
                gpus += spot
        free = self._is_free
        taken = dict.fromkeys(r for g in gpus for r in board.tenants[g] if free(r))
        for _ in range(min(8, len(self.waiting))):
            taken[chance.one_of(self.waiting)] = None
        return list(taken)

    def _waste(self, spot: Spot) -> tuple[int, int]:
        """How much more the first of these GPUs costs than what lies there is worth; then what is left on it."""
        board, g = self.board, spot[0]
        price = board.price[g]
        lost = price * PRICE_SCALE - sum([self.worth[w] for w in board.models[g]]) if price else 0
        return (lost, board.promise[g])

    def _force(self, r: int) -> list[tuple[int, Spot]]:
        """Place an unplaced replica on some GPUs whatever free replicas are there; who had to leave, and where from."""
        board, chance, w = self.board, self.chance, self.board.owner[r]
        host = chance.below(len(board.hosts))
        gpus = list(board.host_gpus[host])
        if board.need(w, host) is None or not board.ready[host] or len(gpus) < board.size[w]:
            return []
        if board.size[w] > 1 and (board.workloads[w].same_island or chance.below(4)):
            island = board.island[chance.one_of(gpus)]
            gpus = [g for g in gpus if board.island[g] == island]
        spot = tuple(sorted(chance.shuffled(gpus)[: board.size[w]]))
        left: list[tuple[int, Spot]] = [(r, ())]
        for g in spot:
            left += [(x, self.take(x)) for x in list(board.tenants[g]) if self._is_free(x)]
        if board.can_stand(w, spot):
            self.put(r, spot)
        return left

    def _is_free(self, r: int) -> bool:
        board = self.board
        return not (board.runs[r] and board.spot[r] == board.home[r]) and not board.fixed[r]

    def _put_back(self, taken: list[int]) -> None:
        """Place these again: mostly the large first; when not all fit, the small or any first leaves fewer out."""
        board, chance = self.board, self.chance
        self.noise = chance.below(4) * 6
        blur = 1 + chance.below(3) * 20
        cheapest = chance.below(3) == 0
        mode = chance.below(8) if self.unplaced else chance.below(12) + 2

        def rank(r: int) -> tuple[int, int, int]:
            w = board.owner[r]
            volume = self.largest[w] * (100 + chance.below(blur))
            if mode == 0:
                return (-board.priority[w], volume * board.size[w], 0)
            if mode <= 2:
                return (-board.priority[w], chance.below(1 << 20), 0)
            if mode <= 4:
                return (-board.priority[w], -volume * board.size[w], 0)
            return (-board.priority[w], -board.size[w], -volume)

        self.place_all(sorted((r for r in taken if not board.spot[r]), key=rank), cheapest)
        self.noise = 0
