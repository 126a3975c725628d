"""`cotenant plan` and `render` on snapshots: what would be done, in which order, and why not."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cotenant.cli import simulation
from cotenant.core.snapshot import GPUNode, Node, Spread
from tests.cli.worlds import said, save, two_nodes, wish
from tests.core.builders import Cluster, model, node, placement

ROOT = Path(__file__).parents[2]
Capture = pytest.CaptureFixture[str]


def test_a_plan_says_where_with_which_flag_and_in_which_order(capsys: Capture, tmp_path: Path) -> None:
    seen = save(two_nodes().snapshot(), tmp_path)
    file = wish(tmp_path, "new", {"name": "a", "share": "70%"}, {"name": "b", "share": "15%"})

    assert said(capsys, "plan", "--offline", "--snapshot", seen, "-f", file) == PLAN


PLAN = """\
2 of 2 replicas placed: 2 start

 replica           turn   what     node   GPU   share   flag   each GPU   overrun
 ────────────────────────────────────────────────────────────────────────────────
 default/new/a/0      1   starts   n1     1     70%     0.70       56Gi       3Gi
 default/new/b/0      2   starts   n1     1     15%     0.15       12Gi       3Gi

order (one start per GPU at a time; one turn's go together):
    1  start default/new/a/0
    2  start default/new/b/0
GPUs in use: 1 -> 2 of 3, proven minimum 2 (volume)
left: 62Gi; stranded for replicas like these: 24.5Gi (40%); room for more groups of clean GPUs: 0 of 2, 0 of 4, 0 of 8"""


def test_the_placement_on_the_front_page_fits_the_card_it_pictures(capsys: Capture, tmp_path: Path) -> None:
    cluster = Cluster([rtx_pro_6000("rtx-1")])
    readme = (ROOT / "README.md").read_text()
    (shown,) = (block for block in re.findall(r"```yaml\n(.*?)```", readme, re.S) if "kind: ModelPlacement" in block)
    file = tmp_path / "readme.yaml"
    file.write_text(shown)

    plan = said(capsys, "plan", "--offline", "--snapshot", save(cluster.snapshot(), tmp_path), "-f", str(file))

    assert plan.startswith("2 of 2 replicas placed: 2 start")
    assert [
        line.split()[3:8] for line in plan.splitlines() if line.startswith(" default/sparrow/") and "rtx-1" in line
    ] == [
        ["rtx-1", "0", "70%", "0.70", "66.5Gi"],
        ["rtx-1", "0", "20%", "0.20", "19Gi"],
    ]
    example = yaml.safe_load((ROOT / "examples" / "sparrow.yaml").read_text())
    assert yaml.safe_load(shown)["spec"]["models"] == example["spec"]["models"]


def rtx_pro_6000(name: str) -> tuple[Node, GPUNode]:
    """A node with one card of 95 GiB, as the front page pictures it."""
    host, report = node(name, 1, product="NVIDIA-RTX-PRO-6000-Blackwell")
    card = replace(report.devices[0], total=97_887 << 20, reserved=597 << 20)
    return host, replace(report, devices=(card,))


def test_who_loses_a_place_is_told_for_whom(capsys: Capture, tmp_path: Path) -> None:
    cluster = Cluster([node("n1", 1)]).apply(placement("old", model("low", "60%"))).settle()
    file = wish(tmp_path, "new", {"name": "high", "share": "70%", "priority": 10})

    plan = said(capsys, "plan", "--offline", "--snapshot", save(cluster.snapshot(), tmp_path), "-f", file, status=2)

    assert "Other placements that this touches:" in plan
    assert "loses n1:0" in plan
    assert "x default/old/low/0: Displaced: default/new/high has a higher priority and took its place" in plan
    assert "    1  stop default/old/low/0\n    2  start default/new/high/0" in plan


def test_what_has_no_place_is_told_with_the_nearest_miss_and_what_would_help(capsys: Capture, tmp_path: Path) -> None:
    seen = save(two_nodes().snapshot(), tmp_path)
    file = wish(tmp_path, "new", {"name": "a", "share": "100Gi"})

    plan = said(capsys, "plan", "--offline", "--snapshot", seen, "-f", file, status=2)
    data = json.loads(said(capsys, "plan", "--offline", "--snapshot", seen, "-f", file, "-o", "json", status=2))

    assert "0 of 1 replicas placed: 1 without a place" in plan
    assert "needs 100Gi on a GPU; n1 has the most, 76Gi" in plan
    assert "would help: a share of 95% (76Gi), on n1" in plan
    assert data["replicas"][0]["why"]["changes"][0]["node"] == "n1"


def test_a_changed_share_restarts_one_replica_after_the_other(capsys: Capture, tmp_path: Path) -> None:
    cluster = Cluster([node("n1", 2)])
    cluster.apply(placement("app", model("chat", "60%", replicas=2, spread=Spread.GPU))).settle()
    file = wish(tmp_path, "app", {"name": "chat", "share": "70%", "replicas": 2, "spread": "GPU"})

    data = json.loads(
        said(capsys, "plan", "--offline", "--snapshot", save(cluster.snapshot(), tmp_path), "-f", file, "-o", "json")
    )  # fmt: skip

    assert [replica["what"] for replica in data["replicas"]] == ["restarts", "restarts"]
    assert [(a["turn"], a["do"]) for a in data["order"]] == [(1, "stop"), (2, "start"), (3, "stop"), (4, "start")]


def test_without_a_file_the_cluster_as_it_is_is_planned(capsys: Capture, tmp_path: Path) -> None:
    plan = said(capsys, "plan", "--offline", "--snapshot", save(two_nodes().snapshot(), tmp_path))

    assert "2 of 2 replicas placed: 2 stay" in plan
    assert "nothing to do" in plan


def test_holders_and_proofs_come_before_the_first_start() -> None:
    cluster = two_nodes()
    cluster.policy = type(cluster.policy)(engines=cluster.policy.engines)  # holds and proves, as the default is
    cluster.apply(placement("new", model("a", "70%"), created=2.0))

    course = simulation.run(cluster.snapshot())

    verbs = [action.verb for action in course.actions if action.verb != "start"]
    assert "hold" in verbs
    assert "prove" in verbs
    first = next(action for action in course.actions if action.verb == "start")
    assert all(action.turn < first.turn for action in course.actions if action.verb in ("hold", "prove"))
    assert {pod.name for pod in course.after.pods} >= {"new-a-0"}


@settings(max_examples=10, deadline=None)
@given(
    st.lists(st.sampled_from(["20%", "35%", "50%", "70%", "30Gi"]), min_size=1, max_size=5),
    st.lists(st.sampled_from(["20%", "35%", "50%", "70%", "30Gi"]), min_size=1, max_size=4),
    st.integers(0, 1),
)
def test_what_is_planned_is_what_the_controller_does(there: list[str], asked: list[str], priority: int) -> None:
    cluster = Cluster([node("n1", 2), node("n2", 1)])
    cluster.apply(placement("old", *(model(f"o{at}", share) for at, share in enumerate(there)))).settle()
    more = (model(f"m{at}", share, priority=priority) for at, share in enumerate(asked))
    cluster.apply(placement("new", *more, created=2.0))

    course = simulation.run(cluster.snapshot())
    while True:  # what starts in one pass serves after the next: the order of passes decides who finds which GPU
        starting = [pod.name for pod in cluster.pods.values() if pod.is_starting]
        decision = cluster.step()
        if starting:
            cluster.ready(*starting)
        if not (starting or decision.creates or decision.deletes or decision.statuses):
            break

    assert {(p.name, p.allocation) for p in course.after.pods} == {
        (p.name, p.allocation) for p in cluster.pods.values()
    }


def test_a_render_is_the_pods_and_services_that_would_be_made(capsys: Capture, tmp_path: Path) -> None:
    seen = save(two_nodes().snapshot(), tmp_path)
    file = wish(tmp_path, "new", {"name": "a", "share": "70%"}, {"name": "big", "share": "100Gi"})

    text = said(capsys, "render", "--offline", "--snapshot", seen, "-f", file, status=2)

    made = [(body["kind"], body["metadata"]["name"]) for body in yaml.safe_load_all(text) if body]
    assert made == [("Service", "new-a"), ("Service", "new-big"), ("Pod", "new-a-0")]
    assert text.startswith("# default/new/big/0 has no place: InsufficientMemory")
    assert "--gpu-memory-utilization=0.70" in text or "'0.70'" in text


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ("kind: ConfigMap", "there is no ModelPlacement in it"),
        ("a: [", "is not YAML"),
        ("{apiVersion: v1, kind: ModelPlacement}", "apiVersion must be cotenant.dev/v1alpha1"),
        ("{apiVersion: cotenant.dev/v1alpha1, kind: ModelPlacement}", "metadata.name: is required"),
        (
            "{apiVersion: cotenant.dev/v1alpha1, kind: ModelPlacement, metadata: {name: a}, spec: {modles: []}}",
            'spec.modles: unknown field; did you mean "models"?',
        ),
        (
            "{apiVersion: cotenant.dev/v1alpha1, kind: ModelPlacement, metadata: {name: a}, "
            "spec: {models: [{name: m, uri: 'hf://a/b', share: 120%}]}}",
            "spec.models[0].share",
        ),
    ],
)
def test_a_wrong_file_is_one_line(capsys: Capture, tmp_path: Path, document: str, told: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(document)

    line = said(
        capsys, "plan", "--offline", "--snapshot", save(two_nodes().snapshot(), tmp_path), "-f", str(file), status=1
    )

    assert told in line
    assert "\n" not in line


def test_nodes_without_an_agent_are_planned_by_their_labels_and_said_to_be(capsys: Capture, tmp_path: Path) -> None:
    cluster = Cluster([node("n1", 2)])
    kube_node = cluster.nodes[0][0]
    labels = dict(kube_node.labels) | {"nvidia.com/gpu.count": "2", "nvidia.com/gpu.memory": "81559"}
    seen = replace(cluster.snapshot(), nodes=(replace(kube_node, labels=tuple(sorted(labels.items()))),), gpu_nodes=())
    file = wish(tmp_path, "new", {"name": "a", "share": "70%"}, {"name": "b", "share": "70%"})

    plan = said(capsys, "plan", "--offline", "--fast", "--snapshot", save(seen, tmp_path), "-f", file)

    assert plan.startswith("note: 1 node without an agent (n1): planned by the labels of GPU Feature Discovery")
    assert "2 of 2 replicas placed: 2 start" in plan


def test_two_new_placements_are_planned_beside_each_other(capsys: Capture, tmp_path: Path) -> None:
    seen = save(two_nodes().snapshot(), tmp_path)
    one, two = (wish(tmp_path, name, {"name": "a", "share": "20%"}) for name in ("one", "two"))

    plan = said(capsys, "plan", "--offline", "--snapshot", seen, "-f", one, "-f", two)
    text = said(capsys, "render", "--offline", "--snapshot", seen, "-f", one, "-f", two)

    assert "2 of 2 replicas placed: 2 start" in plan
    assert "no rest" not in plan
    owners = [owner for body in yaml.safe_load_all(text) if body for owner in body["metadata"]["ownerReferences"]]
    assert {owner["uid"] for owner in owners} == {"known-once-applied"}


def test_where_there_is_no_node_a_plan_says_so(capsys: Capture, tmp_path: Path) -> None:
    file = wish(tmp_path, "new", {"name": "a", "share": "20%"})

    plan = said(capsys, "plan", "--offline", "--snapshot", save(Cluster([]).snapshot(), tmp_path), "-f", file, status=2)

    assert "x default/new/a/0: NoManagedNodes: there is no node with GPUs to place it on" in plan


def test_a_change_that_will_never_be_carried_out_is_told_and_what_runs_on_still_counts(
    capsys: Capture, tmp_path: Path
) -> None:
    seen = save(Cluster([node("n1")]).apply(placement("app", model("chat", "60%"))).settle().snapshot(), tmp_path)
    # by the catalogue's config: 5% of 80Gi cannot hold the weights of 8B
    file = wish(tmp_path, "app", {"name": "chat", "share": "5%", "uri": "hf://meta-llama/Llama-3.1-8B-Instruct"})

    plan = said(capsys, "plan", "--offline", "--snapshot", seen, "-f", file, status=2)
    data = json.loads(said(capsys, "plan", "--offline", "--snapshot", seen, "-f", file, "-o", "json", status=2))

    assert "1 of 1 replicas placed: 1 as before, not by the new spec" in plan
    assert "keeps old spec" in plan
    assert "x default/app/chat/0: WeightsTooLarge: 4Gi cannot hold the weights" in plan
    assert data["replicas"][0]["what"] == "keepsOldSpec"
    assert data["left"]["bytes"] < 40 << 30
    (gpu,) = data["gpus"]["each"]
    assert (gpu["promised"], gpu["replicas"]) == (48 << 30, ["default/app/chat/0"])


def test_no_share_is_advised_that_cannot_hold_the_weights(capsys: Capture, tmp_path: Path) -> None:
    cluster = Cluster([node("n1")]).apply(placement("app", model("chat", "90%"))).settle()
    file = wish(tmp_path, "new", {"name": "a", "share": "60%", "uri": "hf://meta-llama/Llama-3.1-8B-Instruct"})
    seen = save(cluster.snapshot(), tmp_path)

    plan = said(capsys, "plan", "--offline", "--snapshot", seen, "-f", file, status=2)
    data = json.loads(said(capsys, "plan", "--offline", "--snapshot", seen, "-f", file, "-o", "json", status=2))

    assert "a share of" not in plan
    assert data["replicas"][0]["why"]["changes"] == []


def test_the_share_that_is_told_is_the_nodes_own(capsys: Capture, tmp_path: Path) -> None:
    other = [{"selector": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}, "share": "30%"}]
    file = wish(tmp_path, "new", {"name": "a", "share": "70%", "perNode": other})

    data = json.loads(
        said(capsys, "plan", "--offline", "-o", "json", "--snapshot", save(two_nodes().snapshot(), tmp_path), "-f", file)
    )  # fmt: skip

    assert (data["replicas"][0]["share"], data["replicas"][0]["utilization"]) == ("30%", "0.30")


def test_replicas_that_differ_in_their_number_alone_share_a_row_and_a_name(capsys: Capture, tmp_path: Path) -> None:
    file = wish(tmp_path, "many", {"name": "a", "share": "100Gi", "replicas": 200})

    plan = said(capsys, "plan", "--offline", "--snapshot", save(two_nodes().snapshot(), tmp_path), "-f", file, status=2)

    assert " default/many/a/0..199 (200)" in plan
    assert "x default/many/a/0..199 (200): InsufficientMemory" in plan
    assert len(plan.splitlines()) < 20


def test_a_narrow_terminal_loses_columns_and_never_a_name(tmp_path: Path) -> None:
    seen, long = save(two_nodes().snapshot(), tmp_path), "a-name-of-forty-letters"
    file = wish(tmp_path, "app-long", {"name": "x", "share": "20%"}, {"name": long, "share": "20%"})

    command = [sys.executable, "-m", "cotenant", "plan", "--offline", "--snapshot", seen, "-f", file]
    done = subprocess.run(command, env={**os.environ, "COLUMNS": "80"}, text=True, capture_output=True, check=True)

    lines = done.stdout.splitlines()
    table = lines[2 : lines.index("order (one start per GPU at a time; one turn's go together):")]
    assert max(map(len, table)) <= 80
    assert not any(line.endswith(" ") or "…" in line for line in lines)
    assert any(f"default/app-long/{long}/0" in line for line in table)
    assert "overrun" not in "".join(table)


def test_a_plan_shows_every_gpu_as_it_will_be(capsys: Capture, tmp_path: Path) -> None:
    file = wish(tmp_path, "new", {"name": "a", "share": "70%"})

    plan = said(capsys, "plan", "--offline", "--map", "--snapshot", save(two_nodes().snapshot(), tmp_path), "-f", file)

    assert "once all is done:" in plan
    assert "default/new/a/0  70% = 0.70  56Gi" in plan


def test_an_automatic_share_is_planned_and_kept_for_a_model_that_goes_further_than_it_is_sized_for(
    capsys: Capture, tmp_path: Path
) -> None:
    file = wish(tmp_path, "new", {"name": "a", "share": "auto", "uri": "hf://meta-llama/Llama-3.1-8B-Instruct"})
    seen = save(Cluster([node("n1")]).snapshot(), tmp_path)

    plan = said(capsys, "plan", "--offline", "--snapshot", seen, "-f", file)
    text = said(capsys, "render", "--offline", "--snapshot", seen, "-f", file)

    assert "1 of 1 replicas placed: 1 start" in plan
    assert "ContextTooLong" not in plan
    assert "restart" not in plan
    (pod,) = (body for body in yaml.safe_load_all(text) if body and body["kind"] == "Pod")
    assert "--max-model-len=8192" in pod["spec"]["containers"][0]["args"]


HEAD = "apiVersion: cotenant.dev/v1alpha1\nkind: ModelPlacement\n"
GOOD = "spec: {models: [{name: m, uri: hf://o/m, share: 10%}]}"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (HEAD + "metadata: {name: a}\nspec: hello", 'a: spec: must be a mapping of fields, not "hello"'),
        (HEAD + "metadata: {name: a}\nspec: {models: 5}", "a: spec.models: must be a list, not 5"),
        (HEAD + "metadata: {name: a, namespace: 5}\n" + GOOD, "metadata.namespace: must be text, not 5"),
        (HEAD + "metadata: {name: a, lables: {}}\n" + GOOD, 'metadata.lables: unknown field; did you mean "labels"?'),
        (HEAD + "metadata: {name: a}\nspecs: {}\n" + GOOD, 'specs: unknown field; did you mean "spec"?'),
        (HEAD + "metadata: {name: a}\n" + GOOD + "\nkind: x", "kind: stands twice in one mapping (line 5); leave one"),
        (HEAD.replace("Placement", "Placment") + GOOD, "there is no kind ModelPlacment; did you mean ModelPlacement?"),
        ("kind: List\nitems: 5", "items: must be a list, not 5"),
        ("kind: Pod", "there is no ModelPlacement in it; it holds Pod"),
        ("a: " + "[" * 3000, "is not YAML: it is nested too deeply"),
        ("&a [*a]", "there is no ModelPlacement in it"),
    ],
)
def test_a_malformed_file_is_told_by_its_field(capsys: Capture, tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(text)
    seen = save(two_nodes().snapshot(), tmp_path)

    line = said(capsys, "plan", "--offline", "--snapshot", seen, "-f", str(file), status=1)

    assert told in line
    assert "\n" not in line


def test_every_wrong_field_of_a_file_is_told(capsys: Capture, tmp_path: Path) -> None:
    seen = save(two_nodes().snapshot(), tmp_path)
    file = wish(tmp_path, "new", {"name": "a", "share": "150%"}, {"name": "a", "share": "10%", "replicas": "2"})

    lines = said(capsys, "plan", "--offline", "--snapshot", seen, "-f", file, status=1).splitlines()

    paths = ["spec.models[0].share", "spec.models[1].name", "spec.models[1].replicas"]
    assert all(any(path in line for line in lines) for path in paths)
    assert len(lines) == 3
