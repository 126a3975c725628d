"""The packer: what must hold for any cluster, checked from first principles, and the rules by name."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cotenant.core.packing.answerfile import answer
from cotenant.core.packing.board import Board, order
from cotenant.core.packing.packer import Bin, Demand, Host, Plan, Problem, Running, Workload, pack
from cotenant.core.packing.problemfile import read_problem
from cotenant.core.share import GIB
from cotenant.core.snapshot import Spread
from tests.bench.random_clusters import cluster
from tests.core.check_plan import check

Data = dict[str, Any]
SEEDS = range(100)


def packed(data: Data, iterations: int = 0, moves: int = 99) -> tuple[Data, Plan]:
    """The answer to a problem file."""
    file = read_problem(data)
    plan = pack(replace(file.problem, iterations=iterations, moves=moves))
    return answer(plan, file), plan


def hosts(count: int, gpus: int, gib: int = 80, island: int | None = 0) -> tuple[Host, ...]:
    """Equal nodes n0, n1 and so on."""
    return tuple(
        Host(f"n{n}", 0, tuple(Bin(f"n{n}-{g}", gib * GIB, island=island) for g in range(gpus)), 1 << 40, 1 << 50)
        for n in range(count)
    )


def workload(name: str, gib: int, replicas: int = 1, gpus: int = 1, **more: Any) -> Workload:
    """One model of this share on every kind of host."""
    return Workload(name, replicas, gpus, (Demand(gib * GIB, more.pop("overrun", 0)),), **more)


def places(plan: Plan) -> dict[tuple[str, int], tuple[str, ...]]:
    """Where everything is."""
    return {(p.workload, p.replica): p.gpus for p in plan.placements}


# ------------------------------------------------------------------------------------------------- for any cluster
@pytest.mark.parametrize("seed", SEEDS)
def test_no_answer_breaks_a_rule(seed: int) -> None:
    data = cluster(seed)

    found, _ = packed(data)

    check(data, found)


@pytest.mark.parametrize("seed", range(0, 150, 6))
def test_improvement_breaks_no_rule_and_makes_nothing_worse(seed: int) -> None:
    data = cluster(seed)

    _, quick = packed(data)
    found, better = packed(data, iterations=1500)

    check(data, found)
    assert order(better.key)[0] <= order(quick.key)[0]


@pytest.mark.parametrize("seed", range(0, 150, 3))
def test_the_order_of_lists_changes_nothing(seed: int) -> None:
    data = cluster(seed)
    turned = {**data, "nodes": data["nodes"][::-1], "models": data["models"][::-1], "running": data["running"][::-1]}

    assert json.dumps(packed(data)[0]) == json.dumps(packed(turned)[0])


@pytest.mark.parametrize("seed", range(0, 150, 10))
def test_equal_seeds_give_equal_plans_byte_for_byte(seed: int) -> None:
    data = cluster(seed)

    assert json.dumps(packed(data, 800)[0]) == json.dumps(packed(data, 800)[0])


@pytest.mark.parametrize("seed", range(0, 150, 3))
def test_packing_what_is_packed_changes_nothing(seed: int) -> None:
    data = cluster(seed)
    first, plan = packed(data)
    placed = {p.workload for p in plan.placements}
    counts = {m: sum(p.workload == m for p in plan.placements) for m in placed}
    again = {
        **data,
        "models": [{**m, "replicas": counts[m["name"]]} for m in data["models"] if m["name"] in placed],
        "running": [{k: p[k] for k in ("model", "node", "gpus")} for p in first["placements"]],
    }

    found, second = packed(again)

    check(again, found)
    assert second.key.moves == 0
    assert not second.unplaced


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 32))
def test_sums_stay_true_while_replicas_come_and_go(seed: int) -> None:
    problem = read_problem(cluster(seed, 8)).problem
    board = Board(problem)
    board.build_index()
    before = (list(board.promise), list(board.real), list(board.cpu), board.key())

    for r, w in enumerate(board.owner):
        spot = board.index.spot(w)
        if spot:
            assert board.can_stand(w, spot)
            board.place(r, spot)
    for r, spot in enumerate(board.spot):
        if spot:
            board.remove(r)

    assert (list(board.promise), list(board.real), list(board.cpu), board.key()) == before
    assert board.lumps == 0


# ------------------------------------------------------------------------------------------------------- fitting
def test_two_halves_do_not_fit_on_one_gpu_and_the_reason_says_which_share_would() -> None:
    models = tuple(workload(f"m{n:02d}", 40, overrun=3 * GIB, headroom=500) for n in range(16))

    plan = pack(Problem(hosts(2, 4), models))

    assert len(plan.placements) == 8
    assert {u.reason.text for u in plan.unplaced} == {
        "needs 40Gi on a GPU; n0 has the most, 34Gi; a share of 42.5% (34Gi) would fit"
    }


def test_a_group_that_fits_nowhere_names_the_node_that_comes_nearest() -> None:
    pair = workload("pair", 40, gpus=2)
    there = tuple(Running(f"m{n}", 0, f"n{n // 2}", (f"n{n // 2}-{n % 2}",)) for n in range(4))
    sizes = (49, 60, 60, 60)

    plan = pack(Problem(hosts(2, 2), (pair, *(workload(f"m{n}", s) for n, s in enumerate(sizes))), there))

    assert plan.unplaced[0].reason.text.startswith("needs 40Gi on 2 GPUs of one node; n0 has the most, 20Gi on 2")


def test_headroom_is_the_largest_ask_of_a_gpus_tenants() -> None:
    models = (workload("plain", 40), workload("careful", 36, headroom=1000))

    assert len(pack(Problem(hosts(1, 1), models)).placements) == 1
    smaller = (workload("plain", 36), workload("careful", 36, headroom=1000))
    assert len(pack(Problem(hosts(1, 1), smaller)).placements) == 2


def test_overrun_is_paid_from_what_is_really_free() -> None:
    fits = Problem(hosts(1, 1), (workload("a", 40, overrun=GIB), workload("b", 38, overrun=GIB)))
    too_much = Problem(hosts(1, 1), (workload("a", 40, overrun=GIB), workload("b", 39, overrun=GIB)))

    assert not pack(fits).unplaced
    assert pack(too_much).unplaced[0].reason.code == "Overrun"


@pytest.mark.parametrize(("spread", "placed"), [(Spread.NONE, 4), (Spread.GPU, 2), (Spread.NODE, 1)])
def test_replicas_are_as_far_apart_as_asked(spread: Spread, placed: int) -> None:
    plan = pack(Problem(hosts(1, 2), (workload("m", 10, replicas=4, spread=spread),)))

    assert len(plan.placements) == placed


def test_a_group_prefers_one_island_to_a_cheaper_split() -> None:
    split = Host("a", 0, (Bin("a0", 80 * GIB, island=0), Bin("a1", 80 * GIB, island=1)), 1 << 40, 1 << 50, cost=1)
    whole = Host("b", 0, (Bin("b0", 80 * GIB, island=0), Bin("b1", 80 * GIB, island=0)), 1 << 40, 1 << 50, cost=9)

    plan = pack(Problem((split, whole), (workload("pair", 40, gpus=2),)))

    assert plan.placements[0].host == "b"


def test_a_gpu_with_a_stranger_costs_nothing_and_is_taken_first() -> None:
    bins = (Bin("clean", 80 * GIB), Bin("shared", 80 * GIB, used=GIB))

    plan = pack(Problem((Host("n", 0, bins, 1 << 40, 1 << 50),), (workload("m", 40),)))

    assert plan.placements[0].gpus == ("shared",)
    assert plan.key.cost == 0


# ------------------------------------------------------------------------------------------------------- moving
def test_what_runs_stays_even_where_another_place_would_be_better() -> None:
    there = (Running("a", 0, "n0", ("n0-0",)), Running("b", 0, "n1", ("n1-0",)))

    plan = pack(Problem(hosts(2, 1), (workload("a", 20), workload("b", 20)), there, moves=9, iterations=500))

    assert places(plan) == {("a", 0): ("n0-0",), ("b", 0): ("n1-0",)}
    assert plan.key.moves == 0


def test_a_running_group_keeps_the_order_of_its_ranks() -> None:
    there = (Running("pair", 0, "n0", ("n0-1", "n0-0")),)

    assert pack(Problem(hosts(1, 2), (workload("pair", 20, gpus=2),), there)).placements[0].gpus == ("n0-1", "n0-0")


def crowded(**more: Any) -> Problem:
    """Two GPUs half full with `small`; `big` needs a whole one."""
    there = (Running("s1", 0, "n0", ("n0-0",)), Running("s2", 0, "n1", ("n1-0",)))
    big = workload("big", 80, priority=more.pop("priority", 1), namespace=more.pop("namespace", ""))
    return Problem(hosts(2, 1), (big, workload("s1", 30), workload("s2", 30)), there, **more)


def test_a_lower_priority_moves_aside_and_is_told_for_whom() -> None:
    plan = pack(crowded(moves=3))

    assert not plan.unplaced
    assert plan.key.moves == 1
    assert [p.moved_for for p in plan.placements if p.moved] == ["big"]


@pytest.mark.parametrize("why", ["no moves allowed", "equal priority", "another namespace"])
def test_nothing_moves_that_is_protected(why: str) -> None:
    problem = {
        "no moves allowed": crowded(moves=0),
        "equal priority": crowded(moves=3, priority=0),
        "another namespace": crowded(moves=3, namespace="others"),
    }[why]

    plan = pack(problem)

    assert plan.key.moves == 0
    assert [u.workload for u in plan.unplaced] == ["big"]


def test_an_unplaced_replica_is_told_which_move_would_place_it_and_whose_leave_that_takes() -> None:
    for problem, consent in (
        (crowded(moves=0), "moves"),
        (crowded(moves=3, priority=0), "priority"),
        (crowded(moves=3, namespace="others"), "namespace"),
    ):
        change = pack(problem).unplaced[0].reason.changes[-1]

        assert (change.code, change.workload, change.consent) == ("Move", "s1", consent)


def test_settings_let_equals_move_and_namespaces_displace() -> None:
    assert not pack(crowded(moves=3, priority=0, move_equals=True)).unplaced
    assert not pack(crowded(moves=3, namespace="others", displacing=(("others", 0),))).unplaced
    assert pack(crowded(moves=3, namespace="others", displacing=(("others", -1),))).unplaced


def test_a_lower_priority_is_displaced_where_there_is_no_other_place() -> None:
    there = (Running("low", 0, "n0", ("n0-0",)),)

    plan = pack(Problem(hosts(1, 1), (workload("low", 50), workload("high", 60, priority=5)), there, moves=1))

    assert [p.workload for p in plan.placements] == ["high"]
    assert plan.unplaced[0].reason.displaced_by == "high"
    assert plan.unplaced[0].reason.text.startswith("high has a higher priority and took its place; ")


def test_what_is_new_and_lower_does_not_keep_a_higher_one_from_making_room() -> None:
    # `high` must displace `old`; `new` went to the GPU first and leaves no room beside `high`
    there = (Running("old", 0, "n0", ("n0-0",)),)
    models = (workload("high", 70, priority=2), workload("old", 20), workload("new", 30))

    plan = pack(Problem(hosts(1, 1), models, there, moves=9))

    assert [p.workload for p in plan.placements] == ["high"]


def test_two_replicas_of_one_model_never_move_at_once() -> None:
    there = tuple(Running("s", n, f"n{n}", (f"n{n}-0",)) for n in range(3))
    big = workload("big", 80, replicas=2, priority=1)

    plan = pack(Problem(hosts(3, 1), (big, workload("s", 26, replicas=3)), there, moves=9))

    assert plan.key.moves == 1


def test_what_starts_is_never_moved() -> None:
    there = (Running("s1", 0, "n0", ("n0-0",), fixed=True), Running("s2", 0, "n1", ("n1-0",), fixed=True))
    problem = replace(crowded(moves=3), running=there)

    assert pack(problem).key.moves == 0


def test_replicas_of_a_lost_node_go_elsewhere_and_count_as_moves() -> None:
    lost, left = hosts(2, 1)
    there = (Running("m", 0, "n0", ("n0-0",)),)

    plan = pack(Problem((replace(lost, ready=False), left), (workload("m", 30),), there))

    assert places(plan) == {("m", 0): ("n1-0",)}
    assert plan.key.moves == 1


def test_of_tenants_that_no_longer_fit_the_fewest_leave() -> None:
    (host,) = hosts(1, 2)
    strained = replace(host, bins=(replace(host.bins[0], used=30 * GIB), host.bins[1]))
    there = tuple(Running(f"m{n}", 0, "n0", ("n0-0",)) for n in range(3))

    plan = pack(Problem((strained,), (workload("m0", 10), workload("m1", 20), workload("m2", 30)), there))

    assert [p.workload for p in plan.placements if p.moved] == ["m0"]


def test_everything_fits_without_a_move_so_nothing_moves() -> None:
    # best fit puts the 30 beside the 40 and then has no place for the 40: only the other way round everything fits
    there = (Running("a", 0, "n0", ("n0-0",)), Running("b", 0, "n1", ("n1-0",)))
    models = (workload("a", 40), workload("b", 45), workload("c", 35, priority=2), workload("d", 40, priority=1))

    plan = pack(Problem(hosts(2, 1), models, there, moves=9))

    assert not plan.unplaced
    assert plan.key.moves == 0


# ------------------------------------------------------------------------------------------------------- bounds
@pytest.mark.parametrize("seed", range(0, 60, 2))
def test_no_plan_is_cheaper_than_its_bound_and_more_effort_never_finds_one(seed: int) -> None:
    problem = replace(read_problem(cluster(seed)).problem, running=())

    quick = pack(replace(problem, iterations=50))
    better = pack(replace(problem, iterations=3000))

    for plan in (quick, better):
        assert plan.bound is not None
        # a bound speaks of plans that leave out and split as much
        if better.key.unplaced == plan.key.unplaced and better.key.splits == plan.key.splits:
            assert plan.bound <= better.key.cost


def test_where_products_differ_the_lp_says_which_takes_what() -> None:
    # a small GPU costs less than a large one, and wastes what a large one puts to use
    small = tuple(Host(f"s{n}", 0, (Bin(f"s{n}-0", 40 * GIB),), 1 << 40, 1 << 50, cost=5) for n in range(6))
    large = tuple(Host(f"l{n}", 1, (Bin(f"l{n}-0", 90 * GIB),), 1 << 40, 1 << 50, cost=7) for n in range(6))
    models = tuple(
        Workload(name, replicas, 1, (Demand(gib * GIB), Demand(gib * GIB)))
        for name, gib, replicas in (("a", 30, 6), ("b", 60, 3))
    )

    plan = pack(Problem((*small, *large), models, iterations=2000))

    assert plan.key.cost == plan.bound == 4 * 7


# ------------------------------------------------------------------------------------------------------- the rest
def test_stopped_at_any_moment_the_plan_is_valid() -> None:
    data = cluster(7)
    file = read_problem(data)

    for asked in (0, 1, 5, 50):
        left = iter([True] * asked)
        plan = pack(replace(file.problem, iterations=5000, moves=9), lambda left=left: next(left, False))
        check(data, answer(plan, file))


def test_no_nodes_and_no_models_are_answers() -> None:
    assert pack(Problem((), ())).key.unplaced == ()
    assert pack(Problem((), (workload("m", 1),))).unplaced[0].reason.code == "NoNodes"


def test_where_not_all_replicas_fit_the_lowest_numbers_do() -> None:
    plan = pack(Problem(hosts(1, 2), (workload("m", 30, replicas=9),)))

    assert [placed.replica for placed in plan.placements] == [0, 1, 2, 3]
    assert [unplaced.replica for unplaced in plan.unplaced] == [4, 5, 6, 7, 8]


def test_what_runs_keeps_its_number() -> None:
    there = (Running("m", 3, "n0", ("n0-0",)),)

    plan = pack(Problem(hosts(1, 2), (workload("m", 60, replicas=4),), there))

    assert [placed.replica for placed in plan.placements] == [0, 3]


def test_replicas_of_one_model_keep_apart_whatever_each_of_them_asks() -> None:
    apart = {"spread": Spread.GPU, "family": "m"}
    asking = (workload("m", 20, **apart), workload("m/1", 24, **apart))

    plan = pack(Problem(hosts(1, 2), asking))

    assert len({placed.gpus for placed in plan.placements}) == 2


def test_looking_for_better_plans_without_any_node_ends() -> None:
    assert pack(Problem((), (workload("m", 1),), iterations=100, moves=9)).unplaced[0].reason.code == "NoNodes"


def test_advice_is_less_than_was_asked_where_shares_are_rounded_up() -> None:
    machine = {"name": "n", "product": "p", "gpus": 1}
    ask = {"name": "m", "share": "95%"}
    file: Data = {"headroom": "5%", "granularity": "256Mi", "products": [{"name": "p", "memory": "81559Mi"}]}

    _, plan = packed(file | {"nodes": [machine], "models": [ask]})
    (change,) = plan.unplaced[0].reason.changes
    _, again = packed(file | {"nodes": [machine], "models": [ask | {"share": f"{change.percent / 100:g}%"}]})

    assert plan.unplaced[0].reason.code == "Memory"
    assert change.percent < 9500
    assert again.unplaced == ()
