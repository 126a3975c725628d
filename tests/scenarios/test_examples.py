"""Every file of examples/ works as it stands, on simulated nodes that fit its selectors."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.scenarios.stage import Stage, flag, gpus, provide_claim

pytestmark = pytest.mark.cluster
EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_becomes_ready(stage: Stage, path: Path) -> None:
    placements = [item for item in yaml.safe_load_all(path.read_text()) if item and item["kind"] == "ModelPlacement"]
    stage.sim.add_node("rtx", "NVIDIA-RTX-PRO-6000-Blackwell", 2)
    stage.sim.add_node("h200", "NVIDIA-H200", 2, islands=[0, 0])
    stage.sim.add_node("a100", "NVIDIA-A100-SXM4-80GB", 2)
    for name in {
        model["tokenSecret"] for item in placements for model in item["spec"]["models"] if "tokenSecret" in model
    }:
        stage.cluster.kubectl("create", "secret", "generic", name, "-n", stage.namespace, "--from-literal=token=x")

    for name in {
        model["cache"]["claim"] for item in placements for model in item["spec"]["models"] if "cache" in model
    }:
        provide_claim(stage, name)

    stage.cluster.kubectl("apply", "-n", stage.namespace, "-f", path)

    for item in placements:
        stage.until_ready(item["metadata"]["name"], 90)
    for pod in stage.pods():
        node = pod["spec"]["nodeName"]
        assert set(gpus(pod)) <= set(stage.sim.uuids(node))
        assert 0 < float(flag(pod)) < 1
