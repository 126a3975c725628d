"""`cotenant map` and `explain` on snapshots."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cotenant.core.snapshot import Fault, OnOutOfMemory, Remedy
from cotenant.core.vllm import Engine
from tests.cli.worlds import said, save, two_nodes
from tests.core.builders import Cluster, model, node, placement

Capture = pytest.CaptureFixture[str]


def test_the_map_is_readable_without_colour_in_80_columns(capsys: Capture, tmp_path: Path) -> None:
    drawn = said(capsys, "map", "--snapshot", save(two_nodes().snapshot(), tmp_path))

    assert drawn == MAP
    assert max(map(len, drawn.splitlines()[:-1])) <= 80


MAP = """\
n1  NVIDIA-H100-80GB-HBM3
  0 [AAAAAAAAAAAAAAAAAAAAAAAABBBBBBBBBB----..] used 70 of 80Gi, free 4Gi
    A default/app/chat/0   60% = 0.60   48Gi, uses 49Gi  Ready
    B default/app/embed/0  20Gi = 0.25  20Gi, uses 21Gi  Ready
    - headroom 10%, 8Gi
  1 [--......................................] used 0 of 80Gi, free 76Gi

n2  NVIDIA-H100-80GB-HBM3
  0 [!!!!!!!!!!!!!!!--.......................] used 30 of 80Gi, free 46Gi
    ! stranger: pid 4711 python of pod ml/notebook uses 30Gi

2 nodes, 3 GPUs, 1 in use, 2 replicas ready; promised 68Gi of 240Gi (28%), used 100Gi"""


def test_the_map_names_closed_nodes_and_who_has_no_place(capsys: Capture, tmp_path: Path) -> None:
    cluster = Cluster([node("n1", 1, cordoned=True)]).apply(placement("app", model("chat", "60%"))).settle()

    drawn = said(capsys, "map", "--snapshot", save(cluster.snapshot(), tmp_path))

    assert "CLOSED: node n1 is cordoned" in drawn
    assert "x default/app/chat/0 Unplaced" in drawn


def test_the_map_as_data_has_every_byte(capsys: Capture, tmp_path: Path) -> None:
    data = json.loads(said(capsys, "map", "n1", "--snapshot", save(two_nodes().snapshot(), tmp_path), "-o", "json"))

    gpu = data["nodes"][0]["gpus"][0]
    assert [tenant["utilization"] for tenant in gpu["tenants"]] == ["0.60", "0.25"]
    assert gpu["promised"] + gpu["headroom"] + gpu["free"] == gpu["usable"]


def test_the_map_of_a_namespace_nobody_uses_says_which_are(capsys: Capture, tmp_path: Path) -> None:
    seen = save(two_nodes().snapshot(), tmp_path)

    line = said(capsys, "map", "-n", "defualt", "--snapshot", seen, status=1)

    assert line == "cotenant map: there is no ModelPlacement in namespace defualt; namespaces with any: default"


def test_the_map_counts_one_node_as_one(capsys: Capture, tmp_path: Path) -> None:
    drawn = said(capsys, "map", "--snapshot", save(Cluster([node("n1")]).snapshot(), tmp_path))

    assert "1 node, 1 GPU, 0 in use, 0 replicas ready" in drawn


def test_the_map_tells_a_flag_that_is_not_the_specs(capsys: Capture, tmp_path: Path) -> None:
    cluster = Cluster([node("n1")]).apply(placement("app", model("chat", "60%"))).settle()
    seen = replace(cluster.snapshot(), placements=(placement("app", model("chat", "70%")),))

    assert "A default/app/chat/0  0.60, its spec: 70%  48Gi" in said(capsys, "map", "--snapshot", save(seen, tmp_path))


def test_a_story_tells_the_place_the_flag_and_the_ledger(capsys: Capture, tmp_path: Path) -> None:
    told = said(
        capsys, "explain", "--offline", "default/app/embed/0", "--snapshot", save(two_nodes().snapshot(), tmp_path)
    )

    assert told.startswith("default/app/embed/0  Ready since")
    assert "shares with default/app/chat/0: no further GPU is used for it" in told
    assert "of 1 other node 1 could take it now: n2" in told
    assert "20Gi: the smallest fraction of four digits of the smallest T that grants it" in told
    assert "promised 48Gi default/app/chat/0 + 20Gi this = 68Gi <= 72Gi (T - headroom 10%)" in told
    assert "expected: + overruns 3Gi + 3Gi = 74Gi <= 80Gi (T)" in told


def test_a_story_tells_why_nowhere(capsys: Capture, tmp_path: Path) -> None:
    cluster = two_nodes().apply(placement("big", model("m", "100Gi"), created=2.0)).settle()

    told = said(capsys, "explain", "--offline", "default/big", "--snapshot", save(cluster.snapshot(), tmp_path))

    assert "default/big/m/0  Unplaced" in told
    assert "2 nodes with NVIDIA-H100-80GB-HBM3: Memory: needs 100Gi, n1 has the most, 76Gi" in told
    assert "would help: a share of 95% (76Gi), on n1" in told


def test_a_story_tells_the_fault_what_was_tried_and_what_is_next(capsys: Capture, tmp_path: Path) -> None:
    cluster = Cluster([node("n1")])
    limits = OnOutOfMemory(allow=(Remedy.REDUCE_CONTEXT,))
    cluster.apply(placement("app", model("chat", "60%", on_out_of_memory=limits))).settle()
    fault = Fault(
        "chat", 0, 1, "KVCacheTooSmall", "holds 4,000 tokens -> Restart", 1, ("Restart",), (), (990.0,), 1100.0
    )
    seen = cluster.snapshot()
    wish = seen.placements[0]
    status = json.loads(wish.status.raw)
    status["models"][0]["faults"] = [
        {"index": 0, "generation": 1, "reason": fault.reason, "message": fault.message, "attempt": 1,
         "remedies": ["Restart"], "times": ["2026-11-21T07:00:00Z"], "retryAt": "2026-11-21T07:00:10Z"}
    ]  # fmt: skip
    raw = replace(wish.status, raw=json.dumps(status))

    told = said(
        capsys, "explain", "--offline", "default/app", "--snapshot", save(replace(seen, placements=(replace(wish, status=raw),)), tmp_path)
    )  # fmt: skip

    assert "KVCacheTooSmall: holds 4,000 tokens -> Restart" in told
    assert "taken: Restart" in told
    assert "next, as far as it helps: ReduceContext" in told
    assert "not allowed by onOutOfMemory: GrowShare (allow GrowShare), ReduceBatch (allow ReduceBatch)" in told
    assert "what a person can do: raise share" in told


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("default/none", "there is no ModelPlacement default/none; there are default/app"),
        ("default/app/none", "has no model none; it has chat, embed"),
        ("default/app/chat/7", "has 1 replica, counted from 0; there is no 7"),
        ("default/app/chat/x", "must be the number of a replica"),
        ("a/b/c/d/e", "must be NAMESPACE/PLACEMENT"),
    ],
)
def test_what_is_not_there_is_one_line(capsys: Capture, tmp_path: Path, name: str, told: str) -> None:
    line = said(capsys, "explain", "--offline", name, "--snapshot", save(two_nodes().snapshot(), tmp_path), status=1)

    assert told in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("text", "told"),
    [(None, "there is no kubeconfig"), ("{", "reading the kubeconfig"), ("[]", "reading the kubeconfig")],
)
def test_a_wrong_kubeconfig_is_one_line(capsys: Capture, tmp_path: Path, text: str | None, told: str) -> None:
    file = tmp_path / "kubeconfig"
    if text is not None:
        file.write_text(text)

    line = said(capsys, "map", "--kubeconfig", str(file), status=1)

    assert told in line
    assert "\n" not in line


@pytest.mark.parametrize(
    "name",
    ["default/app/chat/0", "default/app/chat-0", "app/chat/0", "app/chat-0", "app-chat-0", "default/app-chat-0", "pod/app-chat-0",
     "default/app chat-0"],
)  # fmt: skip
def test_a_replica_is_found_by_every_name_it_goes_by(capsys: Capture, tmp_path: Path, name: str) -> None:
    told = said(capsys, "explain", "--offline", name, "--snapshot", save(two_nodes().snapshot(), tmp_path))

    assert told.startswith("default/app/chat/0  Ready since")


@pytest.mark.parametrize("name", ["default/app/chta/0", "app-chta-0", "defualt/app/chat/0"])
def test_a_name_that_is_nearly_right_is_put_right(capsys: Capture, tmp_path: Path, name: str) -> None:
    line = said(capsys, "explain", "--offline", name, "--snapshot", save(two_nodes().snapshot(), tmp_path), status=1)

    assert line.endswith("; did you mean default/app/chat/0?")


def test_a_story_names_the_engines_fields_as_the_spec_does(capsys: Capture, tmp_path: Path) -> None:
    engine = Engine(limit_mm_per_prompt='{"image":1}', cuda_graphs=False, auto_max_model_len=True, cpu_offload_gb=4)
    cluster = Cluster([node("n1")]).apply(placement("app", model("chat", "60%", engine=engine))).settle()

    told = said(capsys, "explain", "--offline", "app", "--snapshot", save(cluster.snapshot(), tmp_path))

    assert 'engine maxModelLen=auto, cudaGraphs.enabled=false, limitMMPerPrompt={"image":1}, cpuOffloadGB=4' in told
