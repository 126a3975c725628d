"""The simulator against the real API server: pods become Ready, logs can be read, nodes are lost and come back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.control_plane import ControlPlane
from tests.sim import GIB, Sim

NAMESPACE = "sim-test"


@pytest.fixture(scope="module")
def sim(control_plane: ControlPlane) -> Iterator[Sim]:
    api = control_plane.api
    crd = yaml.safe_load((Path(__file__).parents[2] / "crds" / "cotenant.dev_gpunodes.yaml").read_text())
    api.install_crds([crd])
    api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    api.wait("v1", "ServiceAccount", "default", lambda account: account is not None, NAMESPACE)
    with Sim(control_plane.kubeconfig, seed=1, speed=60, overrun=(GIB, 2 * GIB)) as running:
        running.add_node("sim-1", "NVIDIA-H200", 2, islands=[0, 0])
        yield running
        for pod in api.list("v1", "Pod", NAMESPACE):
            api.delete("v1", "Pod", pod["metadata"]["name"], NAMESPACE, grace=0)
        running.delete_node("sim-1")


def pod(name: str, role: str, container: dict[str, Any], **spec: Any) -> dict[str, Any]:
    labels = {"cotenant.dev/role": role, "cotenant.dev/model": name, "cotenant.dev/replica": "0"}
    body = {"nodeSelector": {"kubernetes.io/hostname": "sim-1"}, "containers": [{"name": role, **container}], **spec}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels},
        "spec": body,
    }


def engine(name: str, uuid: str, flag: str, model: str = "meta-llama/Llama-3.1-8B") -> dict[str, Any]:
    container = {
        "image": "vllm/vllm-openai:v0.33.0",
        "command": ["vllm", "serve"],
        "args": [model, "--gpu-memory-utilization", flag, "--max-model-len", "8192"],
        "env": [{"name": "NVIDIA_VISIBLE_DEVICES", "value": f"k8s.device-plugin.nvidia.com/gpu={uuid}"}],
    }
    return pod(name, "engine", container, runtimeClassName="nvidia", restartPolicy="Never")


def is_ready(item: dict[str, Any] | None) -> bool:
    conditions = (item or {}).get("status", {}).get("conditions", ())
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def ended(item: dict[str, Any] | None) -> bool:
    return (item or {}).get("status", {}).get("phase") in ("Failed", "Succeeded")


def test_engines_run_on_held_gpus_are_reported_and_can_be_read_and_killed(
    control_plane: ControlPlane, sim: Sim
) -> None:
    api, uuids = control_plane.api, sim.uuids("sim-1")
    pause = {"image": "registry.k8s.io/pause:3.10", "resources": {"limits": {"nvidia.com/gpu": 1}}}
    for i in range(2):
        api.create(pod(f"hold-{i}", "holder", pause))
        api.wait("v1", "Pod", f"hold-{i}", is_ready, NAMESPACE)

    api.create(engine("first", uuids[0], "0.70"))
    api.wait("v1", "Pod", "first", is_ready, NAMESPACE)
    api.create(engine("second", uuids[0], "0.40"))
    failed = api.wait("v1", "Pod", "second", ended, NAMESPACE)
    report = api.wait(
        "cotenant.dev/v1alpha1", "GPUNode", "sim-1", lambda node: bool(node and node["status"]["gpus"][0]["tenants"])
    )

    assert failed is not None
    assert failed["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 1
    assert report is not None
    gpu = report["status"]["gpus"][0]
    assert gpu["holder"] in ("hold-0", "hold-1")
    assert gpu["tenants"][0]["pod"] == "first"
    assert "on startup is less than desired GPU memory utilization (0.4, 55.92 GiB)" in control_plane.kubectl(
        "logs", "-n", NAMESPACE, "second"
    )
    assert [violation.rule for violation in sim.audit.violations] == ["Promised"]
    sim.audit.violations.clear()

    control_plane.kubectl("annotate", "pod", "-n", NAMESPACE, "first", "sim.cotenant.dev/fault=die")
    dead = api.wait("v1", "Pod", "first", ended, NAMESPACE)
    assert dead is not None
    assert dead["status"]["phase"] == "Succeeded"
    assert "EngineDeadError" in control_plane.kubectl("logs", "-n", NAMESPACE, "first", "--tail=7")
    assert sim.memory("sim-1")[0][0] == 0


def test_a_lost_node_is_not_ready_and_comes_back(control_plane: ControlPlane, sim: Sim) -> None:
    api = control_plane.api
    sim.lose("sim-1")
    api.wait("v1", "Node", "sim-1", lambda node: not is_ready(node), seconds=40)
    sim.back("sim-1")
    api.wait("v1", "Node", "sim-1", is_ready, seconds=40)
