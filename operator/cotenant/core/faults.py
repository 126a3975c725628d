"""What died and why, the next rung for it, and what starts taught: the memory of a placement's status, brought up to date."""

from __future__ import annotations

from dataclasses import dataclass, field

from cotenant.core.decision import Emit
from cotenant.core.demand import Demands
from cotenant.core.ledger import Account
from cotenant.core.planning import Replica
from cotenant.core.pod import Tuning
from cotenant.core.snapshot import Allocation, Fault, Learned, Snapshot


@dataclass(frozen=True)
class Faults:
    """Every replica's ladder as it stands after this pass."""

    of: dict[str, Fault] = field(default_factory=dict)
    """By replica key."""
    by_model: dict[str, tuple[Fault, ...]] = field(default_factory=dict)
    recorded: frozenset[str] = frozenset()
    """uids of dead pods that the status, as it stands in the cluster, has taken down."""
    retry_at: dict[str, float] = field(default_factory=dict)
    learned: dict[str, tuple[Learned, ...]] = field(default_factory=dict)
    events: tuple[Emit, ...] = ()
    wake_at: float | None = None

    def apply(self, replica: Replica) -> Replica:
        """The replica with what its remedies changed."""
        return replica

    def tuning(self, replica: Replica, allocation: Allocation) -> Tuning | None:
        """What its next start runs with beside the spec."""
        return None


def faults(snapshot: Snapshot, demands: Demands, ledger: dict[str, Account]) -> Faults:
    """Judges pods that ended, steps their ladders, forgets what healed."""
    return Faults()
