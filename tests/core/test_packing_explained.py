"""Why here, what is left, and help from outside: data with words made from it, and nothing taken on trust."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cotenant import solver
from cotenant.core.packing.adopt import adopt, part
from cotenant.core.packing.answerfile import answer
from cotenant.core.packing.board import order
from cotenant.core.packing.packer import Bin, Demand, Host, Plan, Problem, Running, Workload, pack
from cotenant.core.packing.problemfile import read_problem
from cotenant.core.packing.whyhere import on_board, why_here
from cotenant.core.share import GIB
from tests.bench.random_clusters import cluster
from tests.core.check_plan import check


def node(name: str, *used: int, cost: int = 1, island: int | None = 0) -> Host:
    """A node whose 80 GiB GPUs carry strangers of these sizes (GiB)."""
    bins = tuple(Bin(f"{name}-{n}", 80 * GIB, u * GIB, island) for n, u in enumerate(used))
    return Host(name, 0, bins, 1 << 40, 1 << 50, cost=cost)


def model(name: str, gib: int, gpus: int = 1, replicas: int = 1) -> Workload:
    """A model with this share."""
    return Workload(name, replicas, gpus, (Demand(gib * GIB),))


def why(problem: Problem, number: int = 0) -> tuple[str, str]:
    """(code, text) of one replica of the plan."""
    found = why_here(on_board(problem, pack(problem)), number)
    return (found.code, found.text)


def test_a_cheaper_place_says_what_the_next_would_cost() -> None:
    assert why(Problem((node("a", 0, cost=2), node("b", 0, cost=9)), (model("m", 10),))) == (
        "Better", "opens GPUs for 2, on b for 9",
    )  # fmt: skip


def test_a_tighter_place_says_what_the_next_would_leave() -> None:
    assert why(Problem((node("a", 60), node("b", 40)), (model("m", 10),))) == (
        "Better", "leaves 10Gi on its GPUs, 30Gi on b",
    )  # fmt: skip


def test_the_only_place_and_where_it_ran_say_so() -> None:
    assert why(Problem((node("a", 0),), (model("m", 10),)))[0] == "OnlyPlace"
    ran = Problem((node("a", 0), node("b", 0)), (model("m", 10),), (Running("m", 0, "b", ("b-0",)),))
    assert why(ran)[0] == "Stays"


@pytest.mark.parametrize("seed", range(0, 60, 3))
def test_every_placement_of_any_plan_can_be_explained(seed: int) -> None:
    problem = read_problem(cluster(seed)).problem
    board = on_board(problem, pack(problem))
    before = board.key()

    assert all(why_here(board, r).text for r, spot in enumerate(board.spot) if spot)
    assert board.key() == before


def test_what_is_left_is_measured_by_what_the_problem_asks_for() -> None:
    # 20 GiB are left on each GPU: enough for `small`, stranded for `pair`
    problem = Problem((node("a", 60, 60, 0, 0),), (model("small", 10), model("pair", 70, 2)))

    left = pack(problem).fragmentation

    assert left is not None
    assert left.free == (10 + 20 + 10 + 10) * GIB
    assert left.stranded == (0 + left.free) // 2
    assert left.groups == ((2, 0), (4, 0), (8, 0))


# ------------------------------------------------------------------------------------------------- help from outside
def test_places_from_elsewhere_are_taken_only_when_they_break_no_rule() -> None:
    problem = Problem((node("a", 0, 0),), (model("m", 50, replicas=2),))

    assert adopt(problem, [("m", 0, "a", ("a-0",)), ("m", 1, "a", ("a-0",))]) is None
    assert adopt(problem, [("m", 0, "a", ("a-7",))]) is None
    assert adopt(problem, [("x", 0, "a", ("a-0",))]) is None
    good = adopt(problem, [("m", 0, "a", ("a-0",)), ("m", 1, "a", ("a-1",))])
    assert good is not None
    assert not good.unplaced


def test_places_that_move_what_may_stay_are_refused() -> None:
    ran = (Running("m", 0, "a", ("a-0",)),)
    problem = Problem((node("a", 0, 0),), (model("m", 50), model("n", 20)), ran, moves=9)

    assert adopt(problem, [("m", 0, "a", ("a-1",)), ("n", 0, "a", ("a-0",))]) is None


def test_a_part_of_a_plan_is_a_problem_whose_answer_fits_back() -> None:
    problem = Problem(tuple(node(n, 0, 0) for n in "abc"), (model("m", 50, replicas=4), model("n", 30, replicas=3)))
    plan = pack(problem)

    smaller, numbers = part(problem, plan, {"a"})
    places = pack(smaller).placements

    kept = [(p.workload, p.replica, p.host, p.gpus) for p in plan.placements if p.host != "a"]
    again = adopt(problem, kept + [(p.workload, numbers[p.workload, p.replica], p.host, p.gpus) for p in places])
    assert again is not None
    assert order(again.key) == order(plan.key)


def test_a_solver_that_dies_changes_nothing() -> None:
    problem = Problem((node("a", 0, 0),), (model("m", 50, replicas=2),))
    plan = pack(problem)

    assert solver.ask(problem, plan, 0.5, memory=64 << 20) == ([], False)


@pytest.mark.parametrize("seed", range(0, 12, 2))
def test_the_solver_betters_a_plan_or_leaves_it(seed: int) -> None:
    pytest.importorskip("ortools")
    data = cluster(seed)
    file = read_problem(data)
    problem = replace(file.problem, moves=9)
    plan = pack(problem)

    better: Plan = solver.improve(problem, plan, 2)

    assert order(better.key) <= order(plan.key)
    check(data, answer(better, file))
