"""Renders the chart with the pinned helm."""

from __future__ import annotations

import json
import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.cluster import build

CHART = Path(__file__).parents[2] / "charts" / "cotenant"
NEEDED = ("--values", str(CHART / "ci" / "lint-values.yaml"))
"""What has no default: the image's name."""

Object = dict[str, Any]


class HelmError(Exception):
    """helm said no; the text is what it said."""


def helm(*words: str, values: Object | None = None) -> str:
    """What helm prints of the chart; HelmError if it fails. Values are given as JSON, which is YAML."""
    env = {**os.environ, **{f"HELM_{name}_HOME": str(build.cache() / "helm") for name in ("CACHE", "CONFIG", "DATA")}}
    command = [str(build.helm()), *words, *NEEDED]
    if values is not None:
        command += ["--values", "-"]
    done = subprocess.run(command, env=env, input=json.dumps(values or {}), capture_output=True, text=True)
    if done.returncode:
        raise HelmError(done.stderr.strip())
    return done.stdout


def render(values: Object | None = None) -> list[Object]:
    """The objects of the chart with these values."""
    return [item for item in yaml.safe_load_all(_template(json.dumps(values or {}))) if item]


@cache
def _template(values: str) -> str:
    return helm("template", "cotenant", str(CHART), values=json.loads(values))


def one(objects: list[Object], kind: str, name: str) -> Object:
    """The object of this kind and name."""
    found = [item for item in objects if item["kind"] == kind and item["metadata"]["name"] == name]
    assert len(found) == 1, f"{len(found)} objects {kind}/{name}"
    return found[0]


def pods(objects: list[Object]) -> dict[str, Object]:
    """Pod specs of the workloads, by name."""
    kinds = ("Deployment", "DaemonSet")
    return {item["metadata"]["name"]: item["spec"]["template"]["spec"] for item in objects if item["kind"] in kinds}


def env(objects: list[Object], workload: str, container: int = 0) -> dict[str, Any]:
    """Variables of a container: their value, or where it comes from."""
    return {
        entry["name"]: entry.get("value", entry.get("valueFrom"))
        for entry in pods(objects)[workload]["containers"][container]["env"]
    }
