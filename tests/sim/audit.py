"""The oracle: everything that must never happen, written down the moment it does."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken rule."""

    at: float
    """Simulated seconds."""
    rule: str
    """MemoryOver, StartsTogether, StartsBesideLeaver, Twin, NotHeld, Promised, Unhealthy, WrongGPU, UnknownGPU."""
    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.at:.2f}s {self.rule} {self.where}: {self.text}"


@dataclass(frozen=True, slots=True)
class End:
    """One engine container ended."""

    at: float
    pod: str
    code: int
    reason: str
    cause: str
    """The first line of its log that names an error."""
    asked: bool
    """It had been asked to leave."""


@dataclass(slots=True)
class Audit:
    """What went wrong, and figures of what happened. A test asserts `audit.violations == []`."""

    violations: list[Violation] = field(default_factory=list)
    incidents: list[Violation] = field(default_factory=list)
    """The same rules broken where an injected fault was the cause (a stranger took the memory)."""
    starts: Counter[str] = field(default_factory=Counter)
    """Container starts by `namespace/pod`."""
    exits: Counter[str] = field(default_factory=Counter)
    """Ends by `code reason`."""
    ends: list[End] = field(default_factory=list)
    peak: dict[str, int] = field(default_factory=dict)
    """Most bytes ever used, by GPU."""

    def broken(self, at: float, rule: str, where: str, text: str, *, injected: bool = False) -> None:
        """Write one down."""
        (self.incidents if injected else self.violations).append(Violation(at, rule, where, text))

    def saw(self, uuid: str, used: int) -> None:
        """A card's use at this moment."""
        if used > self.peak.get(uuid, 0):
            self.peak[uuid] = used

    def report(self) -> str:
        """For an assertion's message."""
        return "\n".join(str(violation) for violation in self.violations[:50]) or "nothing went wrong"
