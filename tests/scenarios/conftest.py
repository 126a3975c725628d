"""The stage, once per session; a namespace and a clean oracle per test."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.cluster.control_plane import ControlPlane
from tests.scenarios.stage import Stage
from tests.sim import GIB, ModelSpec, Sim

MODELS = {
    "sim/tiny": ModelSpec(2 * GIB, 32_768, 8192),
    "sim/big": ModelSpec(30 * GIB, 131_072, 32_768),
}
SPEED = 60
"""A start of 60 to 100 s takes 1 to 1.7."""


@pytest.fixture(scope="session")
def cluster_stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A control plane of its own: these tests delete nodes and kill things."""
    with (
        ControlPlane.start(tmp_path_factory.mktemp("stage")) as cluster,
        Sim(cluster.kubeconfig, seed=7, speed=SPEED, models=dict(MODELS)) as sim,
    ):
        # Waits that a person would not notice, and a test would: a lost node, a dead leader's Lease, an empty GPU.
        stage = Stage(cluster, sim, node_grace="5", leader_election="false", holder_idle="2")
        stage.start_controller()
        yield stage


@pytest.fixture
def stage(cluster_stage: Stage, request: pytest.FixtureRequest) -> Iterator[Stage]:
    """A namespace of its own; afterwards nothing is left and no rule was broken."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.removeprefix("test_").lower())[:50].strip("-")
    cluster_stage.new_namespace(name)
    for log in (cluster_stage.sim.audit.violations, cluster_stage.sim.audit.incidents, cluster_stage.sim.audit.ends):
        log.clear()
    yield cluster_stage
    cluster_stage.clear(list(cluster_stage.sim.world.nodes))
    cluster_stage.check()
