"""The same cluster as a state machine: hypothesis chooses what happens in which order, and shortens what breaks a law."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random
from typing import ClassVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.soak.history import EVENTS, History, Outcome

BY_NAME = {event.__name__: event for event in EVENTS}
CHANCE = st.randoms(use_true_random=False)
UNBOUND = settings(deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)


class ClusterMachine(RuleBasedStateMachine):
    """Rules are what users, nodes, the API server and controllers do; the laws hold after each; at the end rest is reached."""

    ran: ClassVar[list[Outcome]] = []
    """What came of every example, for reports."""

    def __init__(self) -> None:
        super().__init__()
        self.history: History | None = None
        self.broken = False

    @initialize(seed=st.integers(0, 2**16), chance=CHANCE)
    def begin(self, seed: int, chance: Random) -> None:
        """Nodes, settings and one controller."""
        self.history = History(seed, rng=chance)

    @property
    def _there(self) -> History:
        assert self.history is not None
        self.history.outcome.steps += 1
        return self.history

    @rule(what=st.sampled_from(sorted(BY_NAME)), chance=CHANCE)
    def happens(self, what: str, chance: Random) -> None:
        """A user, a node, a GPU, an engine or the API server does something."""
        history = self._there
        history.rng = chance
        BY_NAME[what](history)

    @rule(chance=CHANCE)
    def is_wanted(self, chance: Random) -> None:
        """A placement more, or an edited one: without those little happens."""
        history = self._there
        history.rng = chance
        if not history.create_placement():
            history.edit_placement()

    @rule(seconds=st.sampled_from((0.2, 1.0, 5.0, 20.0, 90.0)))
    def passes(self, seconds: float) -> None:
        """Time, and with it a pass of every controller."""
        history = self._there
        history.physics.pass_time(seconds)
        self._decide(None)

    @rule()
    def decides(self) -> None:
        """A pass of every controller at the same moment as the one before."""
        self._there.physics.pass_time(0.0)
        self._decide(None)

    @rule(write=st.integers(0, 3))
    def dies(self, write: int) -> None:
        """Every controller is killed before this write of its pass and begins anew."""
        self._there.physics.pass_time(1.0)
        self._decide(write)

    def _decide(self, dies_before: int | None) -> None:
        assert self.history is not None
        for controller in list(self.history.controllers):
            self._lawful(partial(self.history.decide, controller, dies_before))

    @precondition(lambda self: self.history is not None)
    @invariant()
    def the_laws_hold(self) -> None:
        """No GPU over its memory, one start per GPU, no twin, no replica without a word."""
        assert self.history is not None
        self._lawful(self.history.check)

    def _lawful(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception:
            self.broken = True
            raise

    def teardown(self) -> None:
        """Nothing happens any more: rest is reached within its bound, and is what it must be."""
        if self.history is None or self.broken:
            return
        history, self.history = self.history, None
        history.come_to_rest()
        ClusterMachine.ran.append(history.outcome)
