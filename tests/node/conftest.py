"""One lab for the whole session, with the chart installed on it; skipped with its reasons where it cannot run."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.charts.render import CHART, helm
from tests.cluster import build
from tests.node import images, needs
from tests.node.config import Gpu
from tests.node.lab import NODE, Lab
from tests.node.looks import SPARROW
from tests.node.world import CLUSTER_POLICY, CLUSTER_POLICY_CRD, MODELS, SYSTEM, VALUES, World

FIRST, SECOND, THIRD = (f"GPU-{digit * 8}-{digit * 4}-{digit * 4}-{digit * 4}-{digit * 12}" for digit in "123")
RTX_PRO_6000 = ("NVIDIA RTX PRO 6000 Blackwell", 97_887 << 20, 597 << 20)
"""Name, total and reserved bytes as NVML v2 says them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything that asks for the lab is a `node` test."""
    for item in items:
        if "lab" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.node)


@pytest.fixture(scope="session")
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A real node with three stand-in cards."""
    if lacks := needs.missing():
        pytest.skip(f"a real kubelet needs what this machine lacks: {'; '.join(lacks)}")
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():  # a first build takes minutes: its progress is to be seen
        build.node_tools()
        build.helm()
    gpus = [Gpu(uuid, *RTX_PRO_6000) for uuid in (FIRST, SECOND, THIRD)]
    # short: a Unix socket's path has 108 bytes
    folder = Path(tempfile.mkdtemp(prefix="cotenant-node-"))
    begin = time.monotonic()
    with Lab.start(folder, gpus, [images.archive(folder)]) as started:
        with capture.global_and_fixture_disabled():
            print(f"node ready after {time.monotonic() - begin:.0f} s; logs: {folder}/logs ", end="", flush=True)
        yield started
    if not request.session.testsfailed:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def world(lab: Lab) -> World:
    """The chart installed as it is, the node labelled for it, and a namespace for models that enforces `restricted`."""
    labels = ["cotenant.dev/managed=true", "nvidia.com/gpu.present=true"]
    labels.append("nvidia.com/gpu.product=NVIDIA-RTX-PRO-6000-Blackwell")
    lab.kubectl("label", "node", NODE, *labels)
    lab.api.install_crds([CLUSTER_POLICY_CRD])
    lab.api.apply(CLUSTER_POLICY)
    rendered = helm("template", "cotenant", str(CHART), values=VALUES)
    lab.kubectl("apply", "--server-side", "-f", "-", input=rendered)
    lab.kubectl("create", "namespace", MODELS)
    lab.kubectl("label", "namespace", MODELS, "pod-security.kubernetes.io/enforce=restricted")
    made = World(lab)
    made.until("the agent's report", lambda: len(made.gpus()) == len(lab.gpus))
    lab.kubectl("rollout", "status", "-n", SYSTEM, "deploy/cotenant-controller", "--timeout=180s")
    return made


@pytest.fixture
def sparrow(world: World) -> Iterator[str]:
    """The founding case, Ready; it stays from test to test."""
    world.lab.kubectl("apply", "-n", MODELS, "-f", SPARROW)
    world.await_ready("sparrow")
    yield "sparrow"
    world.calm()
