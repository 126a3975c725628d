"""The views on a real API server with the real controller: they say what it does, before and after it did it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import install
from tests.cluster.access import KubectlError
from tests.cluster.control_plane import ControlPlane
from tests.cluster.kwok import gpu_node
from tests.scenarios.stage import Stage
from tests.sim import GIB, ModelSpec, Sim, node_manifest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

MODELS = {"sim/tiny": ModelSpec(2 * GIB, 32_768, 8192), "sim/big": ModelSpec(30 * GIB, 131_072, 32_768)}
WISH = {
    "apiVersion": "cotenant.dev/v1alpha1",
    "kind": "ModelPlacement",
    "metadata": {"name": "night"},
    "spec": {
        "headroom": "10%",
        "models": [
            {"name": "big", "uri": "hf://sim/big", "share": "60%", "engine": {"maxModelLen": 8192}},
            {"name": "tiny", "uri": "hf://sim/tiny", "share": "15Gi", "replicas": 2, "engine": {"maxModelLen": 8192}},
        ],
    },
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane of its own: a plan counts every node there is."""
    with ControlPlane.start(tmp_path_factory.mktemp("views")) as started:
        yield started


@pytest.fixture(scope="module")
def bare(cluster: ControlPlane) -> str:
    """What a view says before Cotenant is installed."""
    return run(cluster, "map", status=1)


@pytest.fixture(scope="module")
def plan_before(cluster: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A plan for a cluster that has the GPU Operator's labels and nothing of Cotenant."""
    file = tmp_path_factory.mktemp("bare") / "night.yaml"
    file.write_text(yaml.safe_dump(WISH))
    node = gpu_node("g-1", "NVIDIA-H100-80GB-HBM3", 2, 81559)
    node["status"]["conditions"] = [{"type": "Ready", "status": "True", "reason": "Test", "message": ""}]
    cluster.api.create(node)
    plan = run(cluster, "plan", "--offline", "--fast", "-f", str(file))
    cluster.kubectl("delete", "node", "g-1")
    return plan


@pytest.fixture(scope="module")
def stage(cluster: ControlPlane, bare: str, plan_before: str) -> Iterator[Stage]:
    """Two nodes and the controller."""
    assert bare
    assert plan_before
    with Sim(cluster.kubeconfig, seed=3, speed=60, models=dict(MODELS)) as sim:
        for name, product, gpus in (("h-1", "NVIDIA-H100-80GB-HBM3", 2), ("r-1", "NVIDIA-RTX-PRO-6000-Blackwell", 1)):
            cluster.api.create(node_manifest(name, product, gpus))
        stage = Stage(cluster, sim, leader_election="false", hub_offline="true")
        stage.start_controller()
        stage.until(lambda: len(cluster.api.list("cotenant.dev/v1alpha1", "GPUNode")) == 2, 60, "both agents to report")
        yield stage
        stage.check()


def run(cluster: ControlPlane, *words: str, status: int = 0, user: Path | None = None) -> str:
    """What a command prints, as a person at a terminal of 110 columns would see it without colour."""
    command = [sys.executable, "-m", "cotenant", *words]
    env = {
        "PATH": "/usr/bin:/bin",
        "KUBECONFIG": str(user or cluster.kubeconfig),
        "PYTHONPATH": str(install.ROOT / "operator"),
    }
    done = subprocess.run(command, env=env, text=True, capture_output=True)
    assert done.returncode == status, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout if status != 1 else done.stderr


def places(plan: dict[str, Any]) -> dict[tuple[str, int], tuple[str, str]]:
    return {(r["model"], r["replica"]): (r["node"], r["utilization"]) for r in plan["replicas"]}


def test_a_plan_comes_true_and_the_views_agree_on_it(stage: Stage, tmp_path: Path) -> None:
    file = tmp_path / "night.yaml"
    file.write_text(yaml.safe_dump(WISH))

    planned = json.loads(run(stage.cluster, "plan", "--offline", "-f", str(file), "-o", "json"))
    rendered = list(yaml.safe_load_all(run(stage.cluster, "render", "--offline", "-f", str(file))))
    stage.cluster.kubectl("apply", "-f", file)
    stage.until_ready("night")

    pods = {pod["metadata"]["name"]: pod for pod in stage.pods("night")}
    seen = {
        (
            p["metadata"]["labels"]["cotenant.dev/model"],
            int(p["metadata"]["labels"]["cotenant.dev/replica"]),
        ): json.loads(p["metadata"]["annotations"]["cotenant.dev/allocation"])
        for p in pods.values()
    }
    assert {key: (a["node"], a["utilization"]) for key, a in seen.items()} == places(planned)
    for manifest in (m for m in rendered if m and m["kind"] == "Pod"):
        made = pods[manifest["metadata"]["name"]]["spec"]["containers"][0]
        assert manifest["spec"]["containers"][0]["args"] == made["args"]
        assert manifest["spec"]["containers"][0]["image"] == made["image"]

    again = json.loads(run(stage.cluster, "plan", "--offline", "-f", str(file), "-o", "json"))
    assert {r["what"] for r in again["replicas"]} == {"stays"}
    assert again["order"] == []

    picture = json.loads(run(stage.cluster, "map", "-o", "json"))
    drawn = {(t["model"], t["replica"]): t["phase"] for n in picture["nodes"] for g in n["gpus"] for t in g["tenants"]}
    assert drawn == dict.fromkeys(seen, "Ready")

    story = run(stage.cluster, "explain", "--offline", "default/night/big/0")
    assert "--gpu-memory-utilization 0.60" in story
    assert "serves on" in story  # an event

    saved = tmp_path / "snapshot.yaml"
    saved.write_text(run(stage.cluster, "snapshot", "--offline"))
    offline = json.loads(run(stage.cluster, "plan", "--offline", "--snapshot", str(saved), "-o", "json"))
    assert places(offline) == places(again)
    problem = tmp_path / "problem.yaml"
    problem.write_text(run(stage.cluster, "snapshot", "--offline", "--problem"))
    packed = json.loads(run(stage.cluster, "pack", str(problem)))
    assert packed["unplaced"] == []
    assert {(p["model"].rpartition("/")[2], p["node"]) for p in packed["placements"]} == {
        (model, a["node"]) for (model, _), a in seen.items()
    }


def test_the_charts_role_for_readers_shows_them_what_an_administrator_sees(stage: Stage) -> None:
    cluster = stage.cluster
    cluster.kubectl("create", "serviceaccount", "reader")
    cluster.kubectl(
        "create", "clusterrolebinding", "reader", "--clusterrole=cotenant-reader", "--serviceaccount=default:reader"
    )
    reader = cluster.service_account_kubeconfig("default", "reader")

    for words in (["map"], ["plan", "--offline"], ["explain", "--offline", "default/night/big/0"]):
        assert run(cluster, *words, user=reader) == run(cluster, *words)
    with pytest.raises(KubectlError, match="Forbidden"):
        cluster.kubectl("--kubeconfig", reader, "get", "secrets")


def test_what_does_not_fit_is_told_with_the_nearest_miss(stage: Stage, tmp_path: Path) -> None:
    file = tmp_path / "much.yaml"
    wish = {
        **WISH,
        "metadata": {"name": "much"},
        "spec": {"models": [{"name": "m", "uri": "hf://sim/big", "share": "200Gi"}]},
    }
    file.write_text(yaml.safe_dump(wish))

    said = run(stage.cluster, "plan", "--offline", "-f", str(file), status=2)

    assert "0 of 1 replicas placed" in said
    assert "needs" in said
    assert "has the most" in said


def test_errors_are_one_line(stage: Stage, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(
        yaml.safe_dump({**WISH, "spec": {"models": [{"name": "m", "uri": "hf://sim/big", "shares": "1Gi"}]}})
    )

    said = run(stage.cluster, "plan", "--offline", "-f", str(wrong), status=1)

    assert said.count("\n") == 1
    assert 'spec.models[0].shares: unknown field; did you mean "share"?' in said
    assert "there is no kubeconfig" in run(stage.cluster, "map", "--kubeconfig", str(tmp_path / "none"), status=1)
    assert "there is no ModelPlacement default/nobody" in run(stage.cluster, "explain", "--offline", "nobody", status=1)


def test_a_cluster_without_cotenant_is_planned_by_labels(plan_before: str) -> None:
    assert "Cotenant is not installed on https://" in plan_before
    assert "1 node without an agent (g-1): planned by the labels of GPU Feature Discovery" in plan_before
    assert "3 of 3 replicas placed" in plan_before


def test_a_cluster_without_cotenant_is_told_what_to_do(bare: str) -> None:
    assert "Cotenant is not installed there; install its chart, or apply crds/" in bare
    assert bare.count("\n") == 1
