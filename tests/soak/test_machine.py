"""Hypothesis against the core: what it chooses to happen in a simulated cluster breaks no law, and rest is reached."""

from __future__ import annotations

from hypothesis import settings

from tests.soak.machine import UNBOUND, ClusterMachine

EXAMPLES = 60
"""About 20 s; `make soak` runs more."""

TestClusterMachine = ClusterMachine.TestCase
TestClusterMachine.settings = settings(UNBOUND, max_examples=EXAMPLES, stateful_step_count=25)
