"""Snapshots for the views, and commands run on them as a person would."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from cotenant.__main__ import run
from cotenant.cli import snapshotfile
from cotenant.core.share import GIB
from cotenant.core.snapshot import Snapshot, Stranger
from tests.core.builders import Cluster, model, node, placement


def two_nodes() -> Cluster:
    """Two models at rest on the first of three GPUs, a stranger on the last."""
    cluster = Cluster([node("n1", 2), node("n2", 1)])
    cluster.apply(placement("app", model("chat", "60%"), model("embed", "20Gi"), headroom="10%")).settle()
    host, report = cluster.nodes[1]
    notebook = Stranger(4711, "python", 30 * GIB, "ml/notebook")
    cluster.nodes[1] = (host, replace(report, devices=(replace(report.devices[0], strangers=(notebook,)),)))
    return cluster


def save(seen: Snapshot, folder: Path) -> str:
    """A snapshot as a file; its name."""
    file = folder / "snapshot.yaml"
    file.write_text(snapshotfile.dump(seen))
    return str(file)


def wish(folder: Path, name: str, *models: dict[str, object], **spec: object) -> str:
    """A ModelPlacement as a file; its name."""
    entries = [{"uri": f"hf://org/{entry['name']}", **entry} for entry in models]
    body = {
        "apiVersion": "cotenant.dev/v1alpha1", "kind": "ModelPlacement", "metadata": {"name": name},
        "spec": {"models": entries, **spec},
    }  # fmt: skip
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(body))
    return str(file)


def said(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> str:
    """What `cotenant WORDS` prints, without what fills its lines up to the right."""
    assert run(list(words)) == status, capsys.readouterr().err
    told = capsys.readouterr()
    return "\n".join(line.rstrip() for line in (told.err if status == 1 else told.out).splitlines())
