"""Problem files: what is taken, what is refused and how, and what the command prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from cotenant.cli.pack import main
from cotenant.core.packing import problemfile
from cotenant.core.packing.problemfile import read_problem
from cotenant.errors import InvalidSpec
from tests.core.check_plan import check

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples" / "problems").glob("*"))
Data = dict[str, Any]


def problem(**more: Any) -> Data:
    """One node with two GPUs and one model."""
    return {
        "products": [{"name": "P", "memory": "80Gi", "cost": 1}],
        "nodes": [{"name": "n", "product": "P", "gpus": 2}],
        "models": [{"name": "m", "share": "50%"}],
        **more,
    }


def with_node(**more: Any) -> Data:
    """The same with these fields of the node."""
    return problem(nodes=[{"name": "n", "product": "P", "gpus": 2, **more}])


def with_model(**more: Any) -> Data:
    """The same with these fields of the model."""
    return problem(models=[{"name": "m", "share": "50%", **more}])


def solved(data: Data, capsys: pytest.CaptureFixture[str], folder: Path, *argv: str) -> Data:
    """What the command prints for this file."""
    file = folder / "problem.json"
    file.write_text(json.dumps(data))
    status = main([str(file), *argv])
    found: Data = json.loads(capsys.readouterr().out)
    assert status == (2 if found["unplaced"] else 0)
    check(data, found)
    return found


@pytest.mark.parametrize(
    ("data", "path", "says"),
    [
        ({"nodez": []}, "nodez", 'did you mean "nodes"'),
        (with_node(gpu=2), "nodes[0].gpu", 'did you mean "gpus"'),
        (with_model(shares=1), "models[0].shares", 'did you mean "share"'),
        (problem(running=[{"model": "m", "node": "n", "gpus": [0], "index": 1}]), "running[0].index", "unknown field"),
        (problem(products=[{"name": "P", "memory": "80Gi", "price": 1}]), "products[0].price", "unknown field"),
        (problem(headroom="-5%"), "headroom", "percentage"),
        (problem(headroom="101%"), "headroom", "percentage"),
        (problem(maxTenantsPerGPU=0), "maxTenantsPerGPU", "whole number"),
        (problem(granularity=0), "granularity", "more than 0"),
        (problem(products=[{"name": "P", "memory": -1}]), "products[0].memory", "quantity"),
        (problem(products=[{"name": "P", "memory": "80Gi", "cost": -1}]), "products[0].cost", "number from 0"),
        (problem(products=[{"name": "P", "memory": "8Gi"}] * 2), "products[1].name", "two products"),
        (with_node(gpus=-1), "nodes[0].gpus", "whole number"),
        (with_node(gpus=True), "nodes[0].gpus", "whole number"),
        (with_node(product="Q"), "nodes[0].product", 'no product "Q"'),
        (with_node(islands=[[0, 2]]), "nodes[0].islands[0][1]", "no GPU 2"),
        (with_node(islands=[[0], [0, 1]]), "nodes[0].islands[1]", "two islands"),
        (with_node(used={"2": "1Gi"}), "nodes[0].used.2", "no GPU 2"),
        (with_node(used={"0": "-1Gi"}), "nodes[0].used.0", "quantity"),
        (with_node(labels={"zone": 1}), "nodes[0].labels.zone", "quote it"),
        (with_node(ready="yes"), "nodes[0].ready", "true or false"),
        (with_node(cpu="-4"), "nodes[0].cpu", "CPU quantity"),
        (problem(nodes=[{"name": "n", "product": "P", "gpus": 1}] * 2), "nodes[1].name", "two nodes"),
        (with_model(share="120%"), "models[0].share", "up to 100%"),
        (with_model(share="auto"), "models[0].share", "auto"),
        (with_model(share=0), "models[0].share", "more than 0"),
        (with_model(share=None), "models[0].share", "required"),
        (with_model(replicas=-1), "models[0].replicas", "whole number"),
        (with_model(replicas=1.5), "models[0].replicas", "whole number"),
        (with_model(tensorParallelSize=0), "models[0].tensorParallelSize", "whole number"),
        (with_model(spread="Rack"), "models[0].spread", "one of None, GPU, Node"),
        (with_model(island="Never"), "models[0].island", "Preferred, Required"),
        (with_model(products=["Q"]), "models[0].products[0]", "no product"),
        (with_model(selector=["a"]), "models[0].selector", "mapping"),
        (problem(models=[{"name": "m", "share": "1Gi"}] * 2), "models[1].name", "two models"),
        (problem(models={"m": {}}), "models", "must be a list"),
        (problem(running=[{"model": "x", "node": "n", "gpus": [0]}]), "running[0].model", "replicas: 0"),
        (problem(running=[{"model": "m", "node": "x", "gpus": [0]}]), "running[0].node", "ready: false"),
        (problem(running=[{"model": "m", "node": "n", "gpus": [5]}]), "running[0].gpus[0]", "no GPU 5"),
        (problem(running=[{"model": "m", "node": "n", "gpus": [0, 0]}]), "running[0].gpus[1]", "twice"),
        (problem(running=[{"model": "m", "node": "n", "gpus": []}]), "running[0].gpus", "at least one"),
        ([], "problem", "mapping"),
    ],
)
def test_bad_input_names_the_field_and_what_to_do(data: Any, path: str, says: str) -> None:
    with pytest.raises(InvalidSpec) as refused:
        read_problem(data)

    assert refused.value.path == path
    assert says in refused.value.reason


@pytest.mark.parametrize("text", ["{", "a: [", "\t- x", "[1, 2]", "", "nodes: 3"])
def test_a_file_that_cannot_be_read_ends_with_one_line(
    text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "problem.yaml"
    file.write_text(text)

    assert main([str(file)]) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda f: f.name)
def test_every_example_is_packed_by_the_rules(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(file), "--seconds", "0.2", "--solver", "none"]) == 0

    check(yaml.safe_load(file.read_text()), json.loads(capsys.readouterr().out))


@pytest.mark.parametrize("data", [{}, problem(models=[]), problem(nodes=[]), with_model(replicas=0)])
def test_little_is_an_answer_too(data: Data, capsys: Any, tmp_path: Path) -> None:
    found = solved(data, capsys, tmp_path, "--seconds", "0")

    assert found["placements"] == []
    assert found["key"]["cost"] == 0


def test_a_group_larger_than_any_node_is_unplaced_and_told_so(capsys: Any, tmp_path: Path) -> None:
    found = solved(with_model(tensorParallelSize=4), capsys, tmp_path, "--seconds", "0")

    assert found["unplaced"][0]["reason"]["code"] == "TooFewGPUs"
    assert found["unplaced"][0]["message"].startswith("needs 4 GPUs of one node; n has 2")


def test_a_selector_that_matches_nothing_is_told(capsys: Any, tmp_path: Path) -> None:
    found = solved(with_model(selector={"zone": "a"}), capsys, tmp_path, "--seconds", "0")

    assert "lacks zone=a" in found["unplaced"][0]["message"]


def test_a_share_that_gives_less_than_the_least_is_told(capsys: Any, tmp_path: Path) -> None:
    found = solved(with_model(atLeast="60Gi"), capsys, tmp_path, "--seconds", "0")

    assert "less than atLeast" in found["unplaced"][0]["message"]


def test_seventy_twenty_and_ten_percent_headroom_is_exactly_the_card(capsys: Any, tmp_path: Path) -> None:
    models = [{"name": "a", "share": "70%"}, {"name": "b", "share": "20%"}]
    found = solved(with_node(gpus=1) | {"models": models, "headroom": "10%"}, capsys, tmp_path, "--seconds", "0")

    assert len(found["placements"]) == 2


@pytest.mark.parametrize(
    ("share", "held"),
    [("20Gi", 20 << 30), ("21e9", 21 * 10**9), (3 * 10**9, 3 * 10**9), (2e9, 2 * 10**9), ("0.5Gi", 1 << 29)],
)
def test_shares_are_quantities_of_every_kind(share: object, held: int) -> None:
    demand = read_problem(with_model(share=share)).problem.workloads[0].demands[0]

    assert demand is not None
    assert demand.share == held


@pytest.mark.parametrize("text", ['{"nodes": [], "nodes": []}', "nodes: []\nmodels: []\nnodes: []"])
def test_a_name_that_stands_twice_is_refused(text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "problem.yaml"
    file.write_text(text)

    assert main([str(file)]) == 1
    assert "nodes: stands twice in one mapping" in capsys.readouterr().err


def test_a_node_of_many_gpus_is_packed_in_time(capsys: Any, tmp_path: Path) -> None:
    models = [
        {"name": "group", "share": "30%", "tensorParallelSize": 8, "replicas": 12},
        {"name": "single", "share": "69%", "replicas": 70},
    ]

    found = solved(with_node(gpus=64) | {"models": models}, capsys, tmp_path, "--seconds", "0", "--solver", "none")

    # a GPU takes three ranks, or one and a single
    assert sum(p["model"] == "group" for p in found["placements"]) == 12


def test_granularity_rounds_demands_up(capsys: Any, tmp_path: Path) -> None:
    models = [{"name": "m", "share": "27Gi", "replicas": 3}]
    data = with_node(gpus=1) | {"models": models}

    assert len(solved(data | {"granularity": "10Gi"}, capsys, tmp_path, "--seconds", "0")["placements"]) == 2


def test_more_running_than_wanted_leaves_from_lost_nodes_first(capsys: Any, tmp_path: Path) -> None:
    nodes = [{"name": "a", "product": "P", "gpus": 1, "ready": False}, {"name": "b", "product": "P", "gpus": 1}]
    running = [{"model": "m", "node": n, "gpus": [0]} for n in ("a", "b")]

    found = solved(problem(nodes=nodes, running=running), capsys, tmp_path, "--seconds", "0")

    assert [(p["node"], p["moved"]) for p in found["placements"]] == [("b", False)]
    assert found["key"]["moves"] == 0


def test_costs_may_be_broken_numbers(capsys: Any, tmp_path: Path) -> None:
    data = problem(products=[{"name": "P", "memory": "80Gi", "cost": 2.5}])

    assert solved(data, capsys, tmp_path, "--seconds", "0")["key"]["cost"] == 2.5


def test_the_schema_knows_the_fields_the_reader_knows() -> None:
    schema = json.loads((ROOT / "docs" / "problem.schema.json").read_text())
    parts = schema["properties"]

    assert set(parts) == set(problemfile.PROBLEM)
    for name, fields in (
        ("products", problemfile.PRODUCT),
        ("nodes", problemfile.NODE),
        ("models", problemfile.MODEL),
        ("running", problemfile.RUNNING),
    ):
        assert set(parts[name]["items"]["properties"]) == set(fields)
