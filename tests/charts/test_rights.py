"""Nobody gets more rights than needed, the README says which, and on a real API server they end where it says."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.charts.render import CHART, Object, render
from tests.charts.ways import EVERYTHING, WAYS
from tests.cluster.api import Api, ApiError
from tests.cluster.control_plane import ControlPlane


@pytest.mark.parametrize("way", WAYS)
def test_rights_name_what_they_are_for(way: str) -> None:
    for item in render(WAYS[way]):
        for rule in item.get("rules", ()) if item["kind"] in ("Role", "ClusterRole") else ():
            assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
            assert not {"secrets", "pods/exec", "pods/attach", "pods/portforward"} & set(rule["resources"])
            assert not {"escalate", "bind", "impersonate"} & set(rule["verbs"])


def rights(objects: list[Object], account: str) -> dict[str, set[str]]:
    """`scope group/resource[=name]` -> verbs of one ServiceAccount, by its bindings."""
    found: dict[str, set[str]] = {}
    for binding in objects:
        if binding["kind"] not in ("RoleBinding", "ClusterRoleBinding"):
            continue
        if account not in [subject["name"] for subject in binding["subjects"]]:
            continue
        where = binding["metadata"].get("namespace", "cluster")
        candidates = [
            item
            for item in objects
            if item["kind"] == binding["roleRef"]["kind"]
            and item["metadata"]["name"] == binding["roleRef"]["name"]
            and item["metadata"].get("namespace", "cluster") == where
        ]
        for rule in candidates[0]["rules"]:
            for group in rule["apiGroups"]:
                for resource in rule["resources"]:
                    for name in rule.get("resourceNames", [""]):
                        what = f"{where} {group}/{resource}" + (f"={name}" if name else "")
                        found.setdefault(what, set()).update(rule["verbs"])
    return found


READ = {"get", "list", "watch"}


def test_the_controller_has_exactly_these_rights() -> None:
    assert rights(render(), "cotenant-controller") == {
        "cluster /nodes": READ,
        "cluster cotenant.dev/gpunodes": READ,
        "cluster cotenant.dev/modelplacements": READ,
        "cluster cotenant.dev/modelplacements/status": {"patch"},
        "cluster node.k8s.io/runtimeclasses": READ,
        "cluster nvidia.com/clusterpolicies": READ,
        "cluster /pods": READ | {"create", "delete"},
        "cluster /pods/log": {"get"},
        "cluster /services": READ | {"create", "patch", "delete"},
        "cluster events.k8s.io/events": {"create", "patch"},
        "cotenant-system coordination.k8s.io/leases": {"create"},
        "cotenant-system coordination.k8s.io/leases=cotenant-controller": {"get", "update"},
        "cotenant-agent coordination.k8s.io/leases": {"list"},
    }


def test_the_agent_has_exactly_these_rights() -> None:
    assert rights(render(), "cotenant-agent") == {
        "cluster cotenant.dev/gpunodes": {"get", "create", "patch"},
        "cluster cotenant.dev/gpunodes/status": {"patch"},
        "cluster /pods": {"get", "list"},
        "cluster /nodes": {"get", "list"},
        "cotenant-agent coordination.k8s.io/leases": {"get", "create", "patch"},
    }


def test_an_agent_may_write_nothing_in_the_controllers_namespace() -> None:
    found = rights(render(), "cotenant-agent")

    assert not [right for right in found if right.startswith("cotenant-system ")]


def test_the_readme_lists_all_rights() -> None:
    """Each as `resource: verbs`, in the section Rights."""
    section = (CHART / "README.md").read_text().split("## Rights")[1].split("\n## ")[0]
    rows = [row.split("|") for row in section.splitlines() if row.startswith(("| controller ", "| agent "))]
    said = {
        (who.strip(), f"{where.strip()} {what.strip(' `')}"): verbs.strip() for _, who, where, what, verbs, *_ in rows
    }
    there = {
        (who, right): ", ".join(verb for verb in VERBS if verb in verbs)
        for who in ("controller", "agent")
        for right, verbs in rights(render(), f"cotenant-{who}").items()
    }

    assert said == there


VERBS = ("get", "list", "watch", "create", "update", "patch", "delete")


def test_with_a_list_of_namespaces_there_are_rights_to_pods_only_there() -> None:
    found = rights(render({"watchNamespaces": ["document-ai"]}), "cotenant-controller")

    assert {right.split()[0] for right in found if right.endswith(" /pods")} == {"cotenant-system", "document-ai"}
    assert not [right for right in found if right.startswith("cluster ") and "create" in found[right]]


# ------------------------------------------------------------------------------------------- on a real API server
@pytest.mark.cluster
def test_the_admission_policies_compile(control_plane: Any) -> None:
    policies = [item for item in render(EVERYTHING) if item["kind"].startswith("ValidatingAdmissionPolicy")]
    assert len(policies) == 6
    for item in policies:
        name = f"test-{item['metadata']['name']}"
        if item["kind"] == "ValidatingAdmissionPolicy":
            control_plane.api.apply({**item, "metadata": {"name": name}})
            made = control_plane.api.wait(
                item["apiVersion"],
                item["kind"],
                name,
                lambda it: bool(it and it.get("status", {}).get("typeChecking") is not None),
            )
            control_plane.api.delete(item["apiVersion"], item["kind"], name)
            assert not made["status"]["typeChecking"].get("expressionWarnings"), made["status"]


AGENTS = "own-node-test"
GPU_NODE = Path(__file__).parents[2] / "crds" / "cotenant.dev_gpunodes.yaml"


@pytest.fixture
def agent(control_plane: ControlPlane) -> Iterator[Api]:
    """The agent of node `own-1`, with the chart's rights and the admission policy in force."""
    api = control_plane.api
    api.install_crds([yaml.safe_load(GPU_NODE.read_text())])
    api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": AGENTS}})
    objects = render({"agent": {"namespace": AGENTS}})
    mine = [item for item in objects if item["metadata"]["name"] in ("cotenant-agent", "cotenant-agents")]
    mine = [item for item in mine if item["kind"] not in ("DaemonSet", "Namespace")]
    for item in mine:
        api.apply(item)
    container = {"name": "agent", "image": "example.org/agent"}
    pod = api.create(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "agent", "namespace": AGENTS},
            "spec": {"nodeName": "own-1", "serviceAccountName": "cotenant-agent", "containers": [container]},
        }
    )
    api.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "own-1"}})
    yield Api(control_plane.service_account_kubeconfig(AGENTS, "cotenant-agent", pod))
    for item in mine:
        api.delete(
            item["apiVersion"], item["kind"], item["metadata"]["name"], item["metadata"].get("namespace", "default")
        )
    api.delete("v1", "Node", "own-1")
    api.delete("v1", "Namespace", AGENTS)


@pytest.mark.cluster
def test_an_agent_writes_the_report_and_the_heartbeat_of_its_own_node_only(
    control_plane: ControlPlane, agent: Api
) -> None:
    def report(node: str) -> Object:
        return {"apiVersion": "cotenant.dev/v1alpha1", "kind": "GPUNode", "metadata": {"name": node}}

    def lease(node: str, namespace: str = AGENTS) -> Object:
        meta = {"name": node, "namespace": namespace}
        return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": meta, "spec": {}}

    # a policy is in force some moments after it was written
    made = agent.apply(report("own-1"))
    denied = None
    for number in range(100):
        denied = refusal(agent, report(f"other-{number}"))
        if denied:
            break
        control_plane.api.delete("cotenant.dev/v1alpha1", "GPUNode", f"other-{number}")
        time.sleep(0.2)

    assert denied
    assert "an agent writes only the GPUNode and the Lease of its own node" in denied
    agent.apply({**report("own-1"), "status": {"driverVersion": "1"}}, subresource="status")
    agent.apply(lease("own-1"))
    assert "of its own node" in refusal(agent, lease("cotenant-controller"))
    assert "cannot" in refusal(agent, lease("own-1", "default"))
    control_plane.api.delete("cotenant.dev/v1alpha1", "GPUNode", made["metadata"]["name"])


def refusal(api: Api, item: Object) -> str:
    """What the API server says against it; empty if it takes it."""
    try:
        api.apply(item)
    except ApiError as error:
        return error.message
    return ""
