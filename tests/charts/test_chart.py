"""The chart renders for every way to set it, asks for no more rights than it needs, and refuses what it does not know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.charts.render import CHART, HelmError, Object, helm, one, render

ROOT = CHART.parents[1]
EVERYTHING: Object = {
    "networkPolicy": {"enabled": True},
    "metrics": {"serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}}},
    "admissionPolicies": {"ownership": {"enabled": True}, "visibleDevices": {"enabled": True}},
    "imagePullSecrets": [{"name": "registry"}],
    "commonLabels": {"team": "ml"},
    "commonAnnotations": {"owner": "ml"},
    "controller": {
        "replicas": 2,
        "podLabels": {"a": "b"},
        "podAnnotations": {"c": "d"},
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "priorityClassName": "system-cluster-critical",
        "env": {"COTENANT_RESYNC": "60"},
        "image": {"digest": f"sha256:{'a' * 64}"},
        "tolerations": [{"operator": "Exists"}],
        "affinity": {"podAntiAffinity": {}},
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"}
        ],
    },
    "agent": {"podLabels": {"a": "b"}, "serviceAccount": {"annotations": {"x": "y"}}},
    "extraObjects": [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "more", "namespace": "{{ .Release.Namespace }}"}}
    ],
}
WAYS: dict[str, Object] = {
    "defaults": {},
    "everything": EVERYTHING,
    "some namespaces": {"watchNamespaces": ["document-ai", "search"]},
    "no agent": {"agent": {"enabled": False}},
    "one namespace": {"agent": {"namespace": ""}},
    "nri": {"injection": {"style": "nri"}, "agent": {"gpuAccess": "nri"}},
    "volume mounts": {"injection": {"style": "volume-mounts"}},
    "nothing optional": {
        "crds": {"enabled": False},
        "namespace": {"create": False},
        "namespaceOverride": "",
        "aggregateRoles": {"enabled": False},
        "metrics": {"service": {"enabled": False}},
        "holder": {"enabled": False},
        "controller": {"podDisruptionBudget": {"enabled": False}},
    },
}
NAMESPACED = {"Deployment", "DaemonSet", "Service", "ServiceAccount", "ConfigMap", "Role", "RoleBinding"}
NAMESPACED |= {"PodDisruptionBudget", "NetworkPolicy", "ServiceMonitor"}


def test_helm_finds_nothing_to_complain_of() -> None:
    assert "0 chart(s) failed" in helm("lint", "--strict", str(CHART))


@pytest.mark.parametrize("way", WAYS)
def test_every_object_is_named_once_and_every_namespaced_one_says_where(way: str) -> None:
    objects = render(WAYS[way])

    names = [(item["kind"], item["metadata"].get("namespace"), item["metadata"]["name"]) for item in objects]
    assert len(names) == len(set(names))
    assert all(item["metadata"].get("namespace") for item in objects if item["kind"] in NAMESPACED)


@pytest.mark.parametrize("way", WAYS)
def test_rights_name_what_they_are_for(way: str) -> None:
    for item in render(WAYS[way]):
        for rule in item.get("rules", ()) if item["kind"] in ("Role", "ClusterRole") else ():
            assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
            assert not {"secrets", "pods/exec", "pods/attach", "pods/portforward"} & set(rule["resources"])
            assert not {"escalate", "bind", "impersonate"} & set(rule["verbs"])


def rights(objects: list[Object], account: str) -> dict[str, set[str]]:
    """`scope group/resource` -> verbs of one ServiceAccount, by its bindings."""
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
                    found.setdefault(f"{where} {group}/{resource}", set()).update(rule["verbs"])
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
        "cotenant-system coordination.k8s.io/leases": READ | {"create", "update", "patch"},
    }


def test_the_agent_has_exactly_these_rights() -> None:
    assert rights(render(), "cotenant-agent") == {
        "cluster cotenant.dev/gpunodes": {"get", "create", "patch"},
        "cluster cotenant.dev/gpunodes/status": {"patch"},
        "cluster /pods": {"get", "list"},
        "cluster /nodes": {"get", "list"},
        "cotenant-system coordination.k8s.io/leases": {"get", "create", "patch"},
    }


def test_with_a_list_of_namespaces_there_are_rights_to_pods_only_there() -> None:
    found = rights(render({"watchNamespaces": ["document-ai"]}), "cotenant-controller")

    assert {right.split()[0] for right in found if right.endswith(" /pods")} == {"cotenant-system", "document-ai"}
    assert not [right for right in found if right.startswith("cluster ") and "create" in found[right]]


def pods(objects: list[Object]) -> dict[str, Object]:
    """Pod specs of the workloads, by name."""
    kinds = ("Deployment", "DaemonSet")
    return {item["metadata"]["name"]: item["spec"]["template"]["spec"] for item in objects if item["kind"] in kinds}


@pytest.mark.parametrize("way", WAYS)
def test_no_container_may_more_than_it_needs(way: str) -> None:
    for pod in pods(render(WAYS[way])).values():
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert "hostNetwork" not in pod
        for container in pod["containers"]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert security["readOnlyRootFilesystem"] is True
            assert container["resources"]["limits"]["memory"]


def test_only_the_reader_of_the_kubelets_socket_is_root_and_only_it_sees_the_socket() -> None:
    agent = pods(render())["cotenant-agent"]
    by_name = {container["name"]: container for container in agent["containers"]}

    assert by_name["agent"]["securityContext"]["runAsNonRoot"] is True
    assert by_name["podresources"]["securityContext"]["runAsUser"] == 0
    assert "pod-resources" not in [mount["name"] for mount in by_name["agent"]["volumeMounts"]]
    assert [volume["name"] for volume in agent["volumes"] if "hostPath" in volume] == ["pod-resources"]


def test_the_reader_sees_no_gpu_and_the_agent_all() -> None:
    agent = pods(render())["cotenant-agent"]
    seen = {
        container["name"]: {entry["name"]: entry.get("value") for entry in container["env"]}["NVIDIA_VISIBLE_DEVICES"]
        for container in agent["containers"]
    }

    assert seen == {"agent": "all", "podresources": "void"}
    assert agent["runtimeClassName"] == "nvidia"
    assert "runtimeClassName" not in pods(render({"agent": {"gpuAccess": "nri"}}))["cotenant-agent"]


def test_namespaces_are_as_strict_as_what_runs_in_them_allows() -> None:
    def levels(values: Object) -> dict[str, str]:
        return {
            item["metadata"]["name"]: item["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]
            for item in render(values)
            if item["kind"] == "Namespace"
        }

    assert levels({}) == {"cotenant-system": "restricted", "cotenant-agent": "privileged"}
    assert levels({"agent": {"namespace": ""}}) == {"cotenant-system": "privileged"}
    assert levels({"namespace": {"create": False}}) == {}


def test_the_crds_are_the_generated_ones_and_outlive_the_chart() -> None:
    source, copy = ({path.name: path.read_text() for path in folder.glob("*.yaml")} for folder in _crd_folders())
    assert source
    assert copy == source, "run `make chart`"
    rendered = [item for item in render() if item["kind"] == "CustomResourceDefinition"]
    assert len(rendered) == len(source)
    assert all(item["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep" for item in rendered)
    dropped = [item for item in render({"crds": {"keep": False}}) if item["kind"] == "CustomResourceDefinition"]
    assert not [item for item in dropped if "helm.sh/resource-policy" in item["metadata"].get("annotations", {})]


def _crd_folders() -> tuple[Path, Path]:
    return ROOT / "crds", CHART / "files" / "crds"


def test_rendering_twice_gives_the_same_and_asks_no_cluster() -> None:
    first, second = (helm("template", "cotenant", str(CHART), values=EVERYTHING) for _ in range(2))
    assert first == second
    assert not [path for path in CHART.rglob("*") if path.is_file() and "lookup " in path.read_text()]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"injection": {"style": "magic"}}, "/injection/style"),
        ({"controller": {"replica": 2}}, "replica"),
        ({"controller": {"replicas": 3}}, "/controller/replicas"),
        ({"engines": []}, "/engines"),
        ({"engines": [{"name": "vllm", "image": "x", "version": 0.26}]}, "/engines/0/version"),
        ({"policy": {"headroom": "five"}}, "/policy/headroom"),
        ({"policy": {"overrun": "3 GB"}}, "/policy/overrun"),
        ({"watchNamespaces": ["Bad Name"]}, "/watchNamespaces/0"),
        ({"agent": {"gpuAccess": "root"}}, "/agent/gpuAccess"),
        ({"controller": {"env": {"LD_PRELOAD": "x"}}}, "LD_PRELOAD"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_bad_values_are_refused_by_name(values: dict[str, Any], says: str) -> None:
    with pytest.raises(HelmError, match=says):
        render(values)


def test_every_default_is_in_the_table_of_the_readme() -> None:
    readme = (CHART / "README.md").read_text()
    for line in (CHART / "values.yaml").read_text().splitlines():
        key = line.split(":")[0]
        if line and not line.startswith((" ", "#", "-")):
            assert f"`{key}" in readme, f"{key} is not in the README"


def test_settings_of_the_chart_are_settings_of_the_program() -> None:
    from cotenant.agent.settings import AgentSettings, ReaderSettings
    from cotenant.settings import Settings

    known = {
        "controller": set(Settings.model_fields),
        "agent": set(AgentSettings.model_fields),
        "podresources": set(ReaderSettings.model_fields),
    }
    for pod in pods(render()).values():
        for container in pod["containers"]:
            named = [entry["name"] for entry in container["env"] if entry["name"].startswith("COTENANT_")]
            unknown = [name for name in named if name.removeprefix("COTENANT_").lower() not in known[container["name"]]]
            assert not unknown


def test_the_controllers_settings_are_accepted_by_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from cotenant import settings

    objects = render({"watchNamespaces": ["a", "b"]})
    engines = tmp_path / "engines.yaml"
    engines.write_text(one(objects, "ConfigMap", "cotenant-engines")["data"]["engines.yaml"])
    for entry in pods(objects)["cotenant-controller"]["containers"][0]["env"]:
        monkeypatch.setenv(entry["name"], entry.get("value", "pod-name"))
    monkeypatch.setenv("COTENANT_ENGINES", str(engines))

    loaded = settings.load()

    assert loaded.watch_namespaces == ("a", "b")
    assert [engine.name for engine in loaded.engines] == ["vllm"]
    assert loaded.holder_priority_class == "cotenant-holder"


# ------------------------------------------------------------------------------------------- on a real API server
@pytest.mark.cluster
@pytest.mark.parametrize("way", ["defaults", "some namespaces", "one namespace", "nri"])
def test_a_real_api_server_takes_all_of_it(control_plane: Any, way: str) -> None:
    """Dry run, so that nothing of it stays: the namespaces it needs are those that exist already."""
    values = {**WAYS[way], "namespaceOverride": "default", "namespace": {"create": False}}
    values["agent"] = {**values.get("agent", {}), "namespace": "default"}
    if "watchNamespaces" in values:
        values["watchNamespaces"] = ["kube-public"]
    text = helm("template", "cotenant", str(CHART), values=values)

    said = control_plane.kubectl("apply", "--dry-run=server", "--server-side", "-f", "-", input=text)

    assert said.count("serverside-applied") == len(render(values))


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
