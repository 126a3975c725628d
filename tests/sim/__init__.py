"""Simulated GPUs and engines on KWOK nodes, by vLLM's own rules, against a real API server.

`Sim` is what tests use; `python -m tests.sim` runs it as a program; engine, card, node and world are pure.
"""

from tests.sim.audit import Audit, Violation
from tests.sim.models import ModelSpec
from tests.sim.products import GIB, MIB, PRODUCTS
from tests.sim.settings import Rule, Settings
from tests.sim.simulator import Sim, node_manifest

__all__ = ["GIB", "MIB", "PRODUCTS", "Audit", "ModelSpec", "Rule", "Settings", "Sim", "Violation", "node_manifest"]
