"""Installs the chart into a test cluster, and says how to run its controller here: with the chart's own settings and rights."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.cluster import build
from tests.cluster.access import Cluster

ROOT = Path(__file__).parents[1]
CHART = ROOT / "charts" / "cotenant"
NAMESPACE = "cotenant-system"
ACCOUNT = "cotenant-controller"

Object = dict[str, Any]


def render(values: Mapping[str, str] | None = None) -> list[Object]:
    """The chart's objects; `values` as helm's --set takes them."""
    homes = {f"HELM_{name}_HOME": str(build.cache() / "helm" / name.lower()) for name in ("CACHE", "CONFIG", "DATA")}
    words = [word for name, value in (values or {}).items() for word in ("--set", f"{name}={value}")]
    needed = ("--values", str(CHART / "ci" / "lint-values.yaml"))
    command = [str(build.helm()), "template", "cotenant", str(CHART), *needed, *words]
    done = subprocess.run(command, env={**os.environ, **homes}, text=True, capture_output=True)
    if done.returncode:
        raise RuntimeError(f"helm template: {done.stderr.strip()}")
    return [item for item in yaml.safe_load_all(done.stdout) if item]


@dataclass(frozen=True, slots=True)
class Controller:
    """How to run the controller that a chart describes, outside the cluster."""

    command: tuple[str, ...]
    env: dict[str, str]


def install(
    cluster: Cluster, values: Mapping[str, str] | None = None, *, settings: Mapping[str, str] | None = None
) -> Controller:
    """Apply the chart (no agents: the simulator plays them; no controller pod: it runs here).

    `settings` are COTENANT_* on top of the chart's, e.g. {"overrun": "2Gi"}.
    """
    objects = render({"agent.enabled": "false", "controller.replicas": "0", **(values or {})})
    first = {"Namespace": 0, "CustomResourceDefinition": 1}
    for item in sorted(objects, key=lambda item: first.get(item["kind"], 2)):
        if item["kind"] == "CustomResourceDefinition":
            cluster.api.install_crds([item])
        else:
            cluster.api.apply(item)
    deployment = next(item for item in objects if item["kind"] == "Deployment")
    engines = next(item for item in objects if item["kind"] == "ConfigMap" and "engines.yaml" in item["data"])
    catalogue = cluster.directory / "engines.yaml"
    catalogue.write_text(engines["data"]["engines.yaml"])
    account = deployment["spec"]["template"]["spec"]["serviceAccountName"]
    told = {
        entry["name"]: entry["value"]
        for entry in deployment["spec"]["template"]["spec"]["containers"][0]["env"]
        if "value" in entry
    }
    told |= {
        "COTENANT_ENGINES": str(catalogue),
        "COTENANT_KUBECONFIG": str(cluster.service_account_kubeconfig(NAMESPACE, account)),
        "COTENANT_HOST": "127.0.0.1",
        "COTENANT_HEALTH_PORT": "0",
        "COTENANT_METRICS_PORT": "0",
        **{f"COTENANT_{name.upper()}": value for name, value in (settings or {}).items()},
    }
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith("COTENANT_") and name != "KUBECONFIG"
    }
    return Controller((sys.executable, "-m", "cotenant", "controller"), {**inherited, **told})
