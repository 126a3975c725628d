"""The chart renders for every way to set it, asks for no more rights than it needs, and refuses what it does not know."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.charts.render import CHART, HelmError, Object, env, helm, one, pods, render
from tests.charts.ways import EVERYTHING, WAYS

ROOT = CHART.parents[1]
NAMESPACED = {"Deployment", "DaemonSet", "Service", "ServiceAccount", "ConfigMap", "Role", "RoleBinding"}
NAMESPACED |= {"PodDisruptionBudget", "NetworkPolicy", "ServiceMonitor", "PrometheusRule"}


def test_helm_finds_nothing_to_complain_of() -> None:
    assert "0 chart(s) failed" in helm("lint", "--strict", str(CHART))


@pytest.mark.parametrize("way", WAYS)
def test_every_object_is_named_once_and_every_namespaced_one_says_where(way: str) -> None:
    objects = render(WAYS[way])

    names = [(item["kind"], item["metadata"].get("namespace"), item["metadata"]["name"]) for item in objects]
    assert len(names) == len(set(names))
    assert all(item["metadata"].get("namespace") for item in objects if item["kind"] in NAMESPACED)


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
        ({"controller": {"podLabels": {"app.kubernetes.io/name": "x"}}}, "app.kubernetes.io/name"),
        ({"agent": {"podLabels": {"app.kubernetes.io/component": "x"}}}, "app.kubernetes.io/component"),
        ({"commonLabels": {"app.kubernetes.io/name": "x"}}, "app.kubernetes.io/name"),
        ({"controller": {"image": {"repository": ""}}}, "set controller.image.repository"),
        (
            {"metrics": {"service": {"enabled": False}, "serviceMonitor": {"enabled": True}}},
            "set metrics.service.enabled to true",
        ),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_bad_values_are_refused_by_name(values: dict[str, Any], says: str) -> None:
    with pytest.raises(HelmError, match=says):
        render(values)


@pytest.mark.parametrize("way", WAYS)
def test_no_key_and_no_variable_is_written_twice(way: str) -> None:
    """YAML readers take the last one; server-side apply refuses it."""
    text = helm("template", "cotenant", str(CHART), values=WAYS[way])

    for item in yaml.load_all(text, OnceLoader):
        for container in (item or {}).get("spec", {}).get("template", {}).get("spec", {}).get("containers", ()):
            names = [entry["name"] for entry in container["env"]]
            assert len(names) == len(set(names)), names
            assert not [entry for entry in container["env"] if entry.get("value") == ""], "re-apply would differ"


class OnceLoader(yaml.SafeLoader):
    """Refuses a mapping with the same key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"{sorted(keys)} {node.start_mark}"
        return super().construct_mapping(node, deep)


def test_what_the_user_sets_wins_over_what_the_chart_sets() -> None:
    told = env(render(EVERYTHING), "cotenant-controller")

    assert told["COTENANT_LOG_LEVEL"] == "DEBUG"
    assert told["HF_ENDPOINT"] == "http://x"
    assert "COTENANT_RUNTIME_CLASS" not in told


def test_the_hub_its_token_and_its_cache_are_the_controllers_to_reach() -> None:
    plain, told = env(render(), "cotenant-controller"), env(render({"hub": EVERYTHING["hub"]}), "cotenant-controller")

    # the root file system is read-only, and nobody's home is none
    mounts = [mount["mountPath"] for mount in pods(render())["cotenant-controller"]["containers"][0]["volumeMounts"]]
    assert plain["HF_HOME"].startswith("/tmp/")
    assert "/tmp" in mounts
    assert not {"HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "COTENANT_HUB_OFFLINE"} & set(plain)
    assert told["HF_TOKEN"] == {"secretKeyRef": {"name": "hub", "key": "token"}}
    assert (told["HF_ENDPOINT"], told["HF_HUB_OFFLINE"], told["COTENANT_HUB_OFFLINE"]) == (
        "https://hub.example.org",
        "1",
        "true",
    )


def test_two_controllers_are_spread_over_nodes_unless_the_user_says_how() -> None:
    def spread(**values: Any) -> list[Object]:
        found = pods(render({"controller": values}))["cotenant-controller"].get("topologySpreadConstraints", [])
        return list(found)

    zone = {"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "DoNotSchedule"}
    assert spread() == []
    assert [each["topologyKey"] for each in spread(replicas=2)] == ["kubernetes.io/hostname"]
    assert [each["topologyKey"] for each in spread(replicas=2, topologySpreadConstraints=[zone])] == [
        zone["topologyKey"]
    ]
    for each in (*spread(replicas=2), *spread(replicas=2, topologySpreadConstraints=[zone])):
        assert each["labelSelector"]["matchLabels"]["app.kubernetes.io/component"] == "controller"


def test_the_network_policies_let_the_controller_reach_the_hub_and_the_agent_only_the_api_server() -> None:
    def ports(name: str, **values: Any) -> set[int]:
        policy = one(
            render({"networkPolicy": {"enabled": True, "apiServerPorts": [6443]}, **values}), "NetworkPolicy", name
        )
        return {port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]}

    assert ports("cotenant-controller") == {6443, 443, 53}
    assert ports("cotenant-controller", hub={"offline": True}) == {6443, 53}
    assert ports("cotenant-agent") == {6443, 53}


def test_the_agent_runs_the_controllers_image_unless_it_has_its_own() -> None:
    def image(**values: Any) -> str:
        return str(pods(render(values))["cotenant-agent"]["containers"][0]["image"])

    assert image().startswith("registry.example.org/cotenant/operator:")
    assert image(agent={"image": {"repository": "r/agent", "tag": "1"}}) == "r/agent:1"


def test_alerts_are_on_series_and_labels_that_exist() -> None:
    documented = (ROOT / "docs" / "metrics.md").read_text()
    rules = one(render(EVERYTHING), "PrometheusRule", "cotenant")["spec"]["groups"][0]["rules"]

    assert rules == yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())["groups"][0]["rules"]
    for rule in rules:
        named = set(re.findall(r"cotenant_\w+", rule["expr"]))
        assert named
        for series in named:
            assert f"`{series}`" in documented, f"{rule['alert']}: {series}"
        assert f"`{rule['alert']}`" in documented
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]


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
@pytest.mark.parametrize("way", ["defaults", "some namespaces", "one namespace", "nri", "closed up"])
def test_a_real_api_server_takes_all_of_it(control_plane: Any, way: str) -> None:
    """Dry run, so that nothing of it stays: the namespaces it needs are those that exist already."""
    values = {**WAYS[way], "namespaceOverride": "default", "namespace": {"create": False}}
    values["agent"] = {**values.get("agent", {}), "namespace": "default"}
    if "watchNamespaces" in values:
        values["watchNamespaces"] = ["kube-public"]
    text = helm("template", "cotenant", str(CHART), values=values)

    said = control_plane.kubectl("apply", "--dry-run=server", "--server-side", "-f", "-", input=text)

    assert said.count("serverside-applied") == len(render(values))
