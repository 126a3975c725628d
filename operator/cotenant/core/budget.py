"""How many replicas of a model may be down for a change."""

from __future__ import annotations

from cotenant.core.demand import Wanted
from cotenant.core.drift import Leave
from cotenant.core.replica import Assigned, NoPlace, Replica


class Budget:
    """How many replicas of a model may be down for a change, given those that are down anyway.

    A rollout counts all that are wanted: where one failed by the new spec, or has no place, the rest keeps serving. Who cannot
    stay (its GPU is sick, or full) waits only for those that can come: the last that serves may have to move.
    """

    def __init__(self, replicas: list[Replica], places: dict[str, Assigned | NoPlace]) -> None:
        self._ready: dict[str, int] = {}
        self._coming: dict[str, int] = {}
        self._wanted: dict[str, Wanted] = {}
        self.lacking: dict[str, Replica] = {}
        """By model: a replica that comes no more by itself."""
        self.down: dict[str, list[Replica]] = {}
        """By model: those that do not serve."""
        for replica in replicas:
            if replica.successor:
                continue
            key = replica.wanted.key
            self._wanted[key] = replica.wanted
            serves = replica.pod is not None and replica.pod.ready and not replica.pod.deleting
            self._ready[key] = self._ready.get(key, 0) + serves
            comes = replica.pod is not None or isinstance(places.get(replica.key), Assigned)
            self._coming[key] = self._coming.get(key, 0) + comes
            if not serves:
                self.down.setdefault(key, []).append(replica)
            if not comes:
                self.lacking.setdefault(key, replica)

    def gone(self, leave: Leave) -> None:
        """One that leaves whatever its model's budget says: it is down too."""
        replica = leave.replica
        if replica is not None and not replica.successor and leave.pod.ready and not leave.pod.deleting:
            self._ready[replica.wanted.key] -= 1

    def take(self, leave: Leave, *, without: int = 0) -> bool:
        """One more down, if the budget has it; not counting so many that cannot come before it has gone."""
        if leave.replica is None:
            return True
        key = leave.replica.wanted.key
        wanted = self._wanted[key]
        # a ring is untied for those that can come: one that has no place at all does not keep it tied
        count = (wanted.model.replicas if leave.by_spec and not without else self._coming[key]) - without
        allowed = min(wanted.placement.max_unavailable, count - 1) if count > 1 else 1
        if allowed - (count - self._ready[key]) <= 0:
            return False
        self._ready[key] -= 1
        return True
