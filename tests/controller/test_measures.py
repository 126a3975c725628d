"""What the controller counts, and that docs/metrics.md names every series of controller and agent."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client import REGISTRY

from cotenant.agent import metrics as agent
from cotenant.controller.measures import Measures
from cotenant.core.decision import Decision, Delete, Judged, Recovered
from cotenant.core.drift import DRIFTS
from cotenant.core.reconcile import reconcile
from cotenant.core.share import GIB, SCALE
from tests.core.builders import POLICY, Cluster, model, node, placement

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_a_death_is_counted_once_however_often_writing_it_down_fails() -> None:
    measures = Measures()
    decision = Decision(judged=(Judged("ns", "p-m-0", "HostOutOfMemory", ("MoreHostMemory",), "uid-1"),), waiting=3)
    deaths = value("cotenant_faults_total", verdict="HostOutOfMemory")
    rungs = value("cotenant_remedies_total", rung="MoreHostMemory")

    for _ in range(3):
        measures.take(decision)

    assert value("cotenant_faults_total", verdict="HostOutOfMemory") == deaths + 1
    assert value("cotenant_remedies_total", rung="MoreHostMemory") == rungs + 1
    assert value("cotenant_starts_waiting") == 3


def test_seconds_until_ready_after_a_death_are_kept_by_what_it_died_of() -> None:
    measures = Measures()
    before = value("cotenant_recovery_seconds_sum", verdict="EngineDied")

    measures.take(Decision(recovered=(Recovered("EngineDied", 42.0, "uid-1"),)))
    measures.take(Decision(recovered=(Recovered("EngineDied", 43.0, "uid-1"),)))
    measures.take(Decision(recovered=(Recovered("EngineDied", 8.0, "uid-2"),)))

    assert value("cotenant_recovery_seconds_sum", verdict="EngineDied") == before + 50.0


def test_what_a_pass_leaves_free_is_shown() -> None:
    cluster = Cluster([node("n1", gpus=4)]).apply(placement("p", model("m", "50%"))).settle()

    Measures().take(reconcile(cluster.snapshot()))

    beside = 40 * GIB - POLICY.headroom * 80 * GIB // SCALE
    assert value("cotenant_free_bytes") == 3 * 80 * GIB + beside
    # half a GPU less headroom takes no second one
    assert value("cotenant_stranded_bytes") == beside
    assert value("cotenant_room_for_groups", gpus="2") == 0


def test_only_what_brings_back_what_should_be_counts_as_drift() -> None:
    measures = Measures()
    before = {reason: value("cotenant_drift_total", kind=reason) for reason in (*DRIFTS, "ScaledDown")}

    reasons = (*DRIFTS, "ScaledDown")
    measures.take(Decision(deletes=tuple(Delete("ns", f"p-{reason}", f"uid-{reason}", reason) for reason in reasons)))

    after = {reason: value("cotenant_drift_total", kind=reason) for reason in reasons}
    assert after == {reason: before[reason] + (reason in DRIFTS) for reason in reasons}


def test_every_series_of_the_controller_is_in_the_documentation() -> None:
    documented = set(re.findall(r"`(cotenant_[a-z_]+)`", PAGE))
    told = {family.name + ("_total" if family.type == "counter" else "") for family in REGISTRY.collect()}

    assert {name for name in told if name.startswith("cotenant_")} <= documented


def test_every_series_of_the_agent_is_in_the_documentation() -> None:
    source = Path(agent.__file__).read_text(encoding="utf-8")
    named = set(re.findall(r'"(cotenant_[a-z_]+)"', source))

    assert named
    assert not {name for name in named if f"`{name}`" not in PAGE and f"`{name}_total`" not in PAGE}


def test_every_kind_of_drift_is_in_the_documentation() -> None:
    assert not [reason for reason in DRIFTS if f"`{reason}`" not in PAGE]
