"""Who has a place keeps it from one pod to the next, from all but a higher priority; and it takes nobody's for that."""

from __future__ import annotations

from dataclasses import replace

from cotenant.core.packing.packer import pack
from cotenant.core.packing.problem import Bin, Demand, Host, Problem, Running, Workload
from cotenant.core.share import GIB
from cotenant.core.vllm import Engine
from tests.core.builders import Cluster, model, node, placement


def crowded() -> Cluster:
    """One GPU that `p` has, and `q` of the same rank that waits for it."""
    cluster = Cluster([node("n1")]).apply(placement("p", model("m", "60%"), created=5.0)).settle()
    return cluster.apply(placement("q", model("n", "40%"), created=1.0)).settle()


def test_a_pod_that_a_person_deletes_comes_back_where_it_was() -> None:
    cluster = crowded()

    del cluster.pods["default", "p-m-0"]
    cluster.settle()

    assert cluster.phases("p") == ["Ready"]
    assert cluster.phases("q") == ["Unplaced"]


def test_a_changed_spec_costs_nobody_its_place() -> None:
    cluster = crowded()

    cluster.apply(placement("p", replace(model("m", "55%"), uri="hf://org/m@2"), created=5.0)).settle()

    assert cluster.log[-2:] == ["-p-m-0 SpecChanged", "+p-m-0"]
    assert cluster.phases("p") == ["Ready"]
    assert cluster.phases("q") == ["Unplaced"]


def test_a_higher_priority_takes_a_place_that_is_between_two_pods() -> None:
    cluster = crowded()

    del cluster.pods["default", "p-m-0"]
    cluster.apply(placement("q", model("n", "40%", priority=1), created=1.0)).settle()

    assert cluster.phases("p") == ["Unplaced"]
    assert cluster.phases("q") == ["Ready"]


def test_who_is_between_two_pods_takes_nobodys_place() -> None:
    gpu = Bin("g", 80 * GIB)
    serves = Workload("serves", 1, 1, (Demand(50 * GIB, 0),))
    grown = Workload("grown", 1, 1, (Demand(60 * GIB, 0),))
    there = (Running("serves", 0, "n", ("g",)), Running("grown", 0, "n", ("g",), between=True))

    plan = pack(Problem((Host("n", 0, (gpu,), 64_000, 1 << 40),), (grown, serves), there))

    assert [placed.workload for placed in plan.placements] == ["serves"]
    assert [unplaced.workload for unplaced in plan.unplaced] == ["grown"]


def test_one_that_the_api_server_refuses_keeps_no_place_from_others() -> None:
    refused = (("default", "p-m-0", "exceeded quota: small"),)
    cluster = Cluster([node("n1")]).apply(placement("p", model("m", "60%")))
    for _ in range(3):
        cluster.step(refused)

    cluster.apply(placement("q", model("n", "70%"), created=9.0))
    for _ in range(3):
        cluster.step(refused)
        cluster.ready()

    assert cluster.phases("q") == ["Ready"]
    assert cluster.phases("p") == ["Unplaced"]


def test_one_that_is_refused_displaces_once_at_most_and_says_why_it_waits() -> None:
    refused = (("default", "p-m-0", "exceeded quota: small"),)
    cluster = Cluster([node("n1")]).apply(placement("q", model("o", "60%"))).settle()
    cluster.apply(placement("p", model("m", "60%", priority=10), created=2.0))

    for _ in range(30):
        decision = cluster.step(refused)
        cluster.ready()
        cluster.now += 15

    assert decision.refused == (("default", "p-m-0"),), "so that it is remembered"
    assert sum(line.endswith("Displaced") for line in cluster.log) <= 1
    assert cluster.phases("q") == ["Ready"]
    assert cluster.said("p")[0]["message"].startswith("exceeded quota: small; besides: needs")


def test_a_model_that_may_not_start_takes_nobodys_place() -> None:
    cluster = Cluster([node("n1")]).apply(placement("q", model("o", "60%"))).settle()

    cluster.apply(placement("p", model("m", "60%", priority=10, engine=Engine(name="nope")), created=2.0)).run(6)

    assert cluster.flags() == {"q-o-0": "0.60"}


def test_a_model_whose_name_is_taken_does_not_take_the_place_as_well() -> None:
    cluster = Cluster([node("n1")]).apply(placement("a-b", model("c", "60%"))).settle()

    cluster.apply(placement("a", model("b-c", "60%", priority=10), created=2.0)).run(6)

    assert cluster.flags() == {"a-b-c-0": "0.60"}
