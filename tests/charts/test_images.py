"""The Dockerfiles copy what exists and run what the chart runs. There is no container engine here to build them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.charts.render import render

ROOT = Path(__file__).parents[2]
DOCKERFILES = sorted((ROOT / "images").glob("*/Dockerfile"))


def instructions(path: Path) -> list[tuple[str, str]]:
    """(word, rest) of each instruction, continued lines joined."""
    text = re.sub(r"^#.*\n", "", path.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in text.splitlines() if line.strip()]


def test_there_is_one_per_workload() -> None:
    assert [path.parent.name for path in DOCKERFILES] == ["agent", "operator"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.parent.name)
def test_every_copied_source_exists(path: Path) -> None:
    copies = [rest.split() for word, rest in instructions(path) if word == "COPY" and not rest.startswith("--from")]
    assert copies
    for *sources, _ in copies:
        for source in sources:
            assert (ROOT / source).exists(), f"{path}: COPY {source}"


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.parent.name)
def test_it_is_multi_stage_non_root_and_without_a_shell(path: Path) -> None:
    words = instructions(path)

    assert len([word for word, _ in words if word == "FROM"]) == 2
    last = [entry for entry in words if entry[0] in ("USER", "ENTRYPOINT", "CMD")]
    assert ("USER", "65534:65534") in last
    for word, rest in last:
        if word != "USER":
            assert isinstance(json.loads(rest), list), f"{word} is not in the exec form"


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.parent.name)
def test_what_it_runs_exists(path: Path) -> None:
    words = dict(instructions(path))
    command = [*json.loads(words["ENTRYPOINT"]), *json.loads(words["CMD"])]
    assert command[0] == "cotenant"

    done = subprocess.run([sys.executable, "-m", *command, "--help"], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr


def test_the_chart_runs_the_programs_of_the_images() -> None:
    commands = [
        container["command"]
        for item in render()
        if item["kind"] in ("Deployment", "DaemonSet")
        for container in item["spec"]["template"]["spec"]["containers"]
    ]
    assert commands == [["cotenant", "agent"], ["cotenant", "agent", "podresources"], ["cotenant", "controller"]]
