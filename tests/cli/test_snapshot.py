"""`cotenant snapshot`: nothing a decision needs is lost, nothing secret is kept, and the problem is the same problem."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from cotenant.__main__ import PROGRAMS, usage
from cotenant.cli import asproblem, snapshotfile
from cotenant.cli.outlook import question
from cotenant.cli.snapshotfile import SnapshotFileError
from cotenant.core.packing.packer import pack
from cotenant.core.packing.problemfile import read_problem
from cotenant.core.preflight import Failed, Preflight
from cotenant.core.reconcile import reconcile
from cotenant.core.share import Percent
from cotenant.core.snapshot import Ended, Holder, Labels, Model, NodeShare, ServicePort, ServiceRecord, Snapshot
from cotenant.sources import model_config
from tests.cli.worlds import said, save, two_nodes
from tests.core.builders import Cluster, model, node, placement


def whole() -> Snapshot:
    """A snapshot with something of every kind."""
    cluster = two_nodes()
    labels: Labels = (("zone", "a"),)
    odd: Model = model("odd", "auto", per_node=(NodeShare(labels, Percent(1234)),))
    cluster.apply(placement("odd", odd, names=("n1",), created=3.0))
    config = model_config("hf://mistralai/Mistral-Small-3.2-24B-Instruct-2506", offline=True)
    return replace(
        cluster.snapshot(),
        holders=(Holder("n1-hold-0", "n1", 0, True),),
        preflights=(Preflight("p", "u", "n1", "k", Failed("saw two"), at=5.0),),
        configs=(("hf://org/chat", config), ("hf://org/odd", "not found")),
        silent=frozenset({"n2"}),
        services=(
            ServiceRecord(
                *("default", "app-chat", "v1-x", "app", "chat", "s1", "u1"),
                (("a", "b"),),
                (ServicePort("http", 80, "http"),),
            ),
        ),
        idle=(("n1-g1", 7.0),),
        refusals=(("default", "x", "quota"),),
        refused_services=(("default", "app-chat", "taken"),),
    )


@pytest.mark.parametrize("form", ["yaml", "json"])
def test_what_is_read_back_decides_the_same(tmp_path: Path, form: str) -> None:
    seen = whole()
    file = tmp_path / "s"
    file.write_text(snapshotfile.dump(seen, form))

    back = snapshotfile.load(str(file))

    assert snapshotfile.dump(back, form) == file.read_text()
    assert reconcile(back) == reconcile(seen)


def test_the_order_of_lists_changes_nothing() -> None:
    seen = whole()

    turned = replace(seen, nodes=seen.nodes[::-1], pods=seen.pods[::-1], gpu_nodes=seen.gpu_nodes[::-1])

    assert snapshotfile.dump(turned) == snapshotfile.dump(seen)


def test_secrets_and_logs_are_left_out() -> None:
    seen = two_nodes().snapshot()
    args = (*seen.pods[0].args, "--api-key", "hush1", "--hf_token=hush2")
    ended = Ended(1, "Error", "", 1.0, "log: hush3")
    pod = replace(seen.pods[0], args=args, start_log="hush4", ended=ended)

    text = snapshotfile.dump(replace(seen, pods=(pod,)))

    assert "hush" not in text
    assert "--gpu-memory-utilization" in text


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"kind": "Pod"}, "is no snapshot"),
        ({"nodez": []}, "nodez: there is no such field"),
        ({"now": "yesterday"}, "now: must be float"),
        ({"nodes": [{"labels": {}}]}, "nodes[0].name: is missing"),
        ({"nodes": {"a": 1}}, "nodes: must be a list"),
    ],
)
def test_a_wrong_file_names_the_field(tmp_path: Path, change: dict[str, object], told: str) -> None:
    data = yaml.safe_load(snapshotfile.dump(two_nodes().snapshot()))
    file = tmp_path / "s.yaml"
    file.write_text(yaml.safe_dump({**data, **change}))

    with pytest.raises(SnapshotFileError, match=told.replace("[", r"\[").replace("]", r"\]")):
        snapshotfile.load(str(file))


def test_the_problem_is_the_one_the_controller_has() -> None:
    cluster = two_nodes()
    cluster.apply(
        placement("more", model("a", "45%", replicas=3, priority=2), model("b", "70Gi"), headroom="10%", created=2.0),
        placement("named", model("c", "10%"), headroom="10%", names=("n2",), created=3.0),
    )
    seen = cluster.snapshot()

    data, _ = asproblem.as_problem(seen)
    ours, theirs = pack(question(seen)), pack(replace(read_problem(data).problem, moves=seen.policy.max_moves))

    assert sorted((p.workload, p.replica, p.host) for p in theirs.placements) == sorted(
        (p.workload, p.replica, p.host) for p in ours.placements
    )
    assert len(theirs.unplaced) == len(ours.unplaced) > 0


def test_a_problem_is_one_that_pack_reads(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    problem = tmp_path / "problem.yaml"
    problem.write_text(
        said(capsys, "snapshot", "--problem", "--no-configs", "--snapshot", save(two_nodes().snapshot(), tmp_path))
    )

    answer = json.loads(said(capsys, "pack", str(problem), "--seconds", "0.1"))

    assert answer["unplaced"] == []
    assert not any(placed["moved"] for placed in answer["placements"])


def test_a_problem_of_groups_keeps_islands_and_running_gpus() -> None:
    host, report = node("n1", 4)
    joined = tuple(replace(device, island=device.index // 2) for device in report.devices)
    cluster = Cluster([(host, replace(report, devices=joined))])
    cluster.apply(placement("app", model("two", "60%", tensor_parallel=2))).settle()

    data, _ = asproblem.as_problem(cluster.snapshot())

    assert data["nodes"][0]["islands"] == [[0, 1], [2, 3]]
    assert data["running"][0]["gpus"] in ([0, 1], [2, 3])


def test_every_command_that_help_names_exists() -> None:
    import importlib

    for name, (module, _) in PROGRAMS.items():
        assert f"  {name} " in usage()
        assert callable(importlib.import_module(module).main)
