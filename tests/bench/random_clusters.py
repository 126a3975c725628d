"""Small random clusters of every kind of trouble, as problem files: for property tests and soaks."""

from __future__ import annotations

import random
from typing import Any

Data = dict[str, Any]


def cluster(seed: int, most_gpus: int = 16) -> Data:
    """A cluster with at most this many GPUs, in which something runs and something is to be placed."""
    chance = random.Random(seed)
    names = ["A-80GB", "B-48GB", "C-141GB"][: chance.choice((1, 1, 1, 2, 3))]
    memory = {"A-80GB": 80, "B-48GB": 48, "C-141GB": 141}
    products = [{"name": n, "memory": f"{memory[n]}Gi", "cost": chance.choice((1, 2, 5))} for n in names]
    nodes: list[Data] = []
    left = chance.randint(1, most_gpus)
    while left > 0:
        count = min(left, chance.choice((1, 2, 4, 4, 8)))
        node: Data = {"name": f"n{len(nodes)}", "product": chance.choice(names), "gpus": count}
        if count > 1 and chance.random() < 0.6:
            half = count // 2
            node["islands"] = chance.choice(([list(range(count))], [list(range(half)), list(range(half, count))]))
        if chance.random() < 0.3:
            node["used"] = {str(g): f"{chance.randint(1, 40)}Gi" for g in range(count) if chance.random() < 0.4}
        if chance.random() < 0.3:
            node["cpu"], node["memory"] = str(chance.randint(4, 24)), f"{chance.randint(32, 256)}Gi"
        if chance.random() < 0.4:
            node["labels"] = {"zone": chance.choice("ab")}
        nodes.append(node)
        left -= count
    data: Data = {"headroom": chance.choice(("0%", "5%", "10%")), "products": products, "nodes": nodes,
                  "models": [], "maxTenantsPerGPU": chance.choice((2, 3, 8, 16)), "running": []}  # fmt: skip
    if chance.random() < 0.2:
        data["granularity"] = "1Gi"
    room = sum(memory[n["product"]] * n["gpus"] for n in nodes) * chance.uniform(0.5, 1.3)
    while room > 0 and len(data["models"]) < 14:
        found = _model(chance, len(data["models"]), names)
        room -= _gib(found["share"]) * found["tensorParallelSize"] * found["replicas"]
        data["models"].append(found)
    _run_some(chance, data, memory)
    return data


def _model(chance: random.Random, number: int, names: list[str]) -> Data:
    ranks = chance.choice((1, 1, 1, 1, 2, 2, 4))
    share = chance.choice(
        (f"{chance.randint(2, 75)}Gi", f"{chance.randint(2, 90)}%", f"{chance.choice((10, 20, 40))}Gi")
    )
    data: Data = {"name": f"m{number:02d}", "share": share, "tensorParallelSize": ranks,
                  "replicas": chance.choice((1, 1, 2, 3)), "overrun": chance.choice(("0", "0", "1Gi", "3Gi")),
                  "spread": chance.choice(("None", "None", "GPU", "Node")),
                  "priority": chance.choice((0, 0, 0, 1, 2))}  # fmt: skip
    if chance.random() < 0.2:
        data["cpu"], data["memory"] = "2", "16Gi"
    if chance.random() < 0.15:
        data["selector"] = {"zone": chance.choice("ab")}
    if chance.random() < 0.2:
        data["products"] = [chance.choice(names)]
    if chance.random() < 0.1:
        data["atLeast"] = "10Gi"
    if ranks > 1 and chance.random() < 0.3:
        data["island"] = "Required"
    return data


def _gib(share: str) -> float:
    return float(share[:-2]) if share.endswith("Gi") else float(share[:-1]) * 0.8


def _run_some(chance: random.Random, data: Data, memory: dict[str, int]) -> None:
    """Let some models run where first fit puts them; now and then something then goes wrong with their place."""
    free: dict[tuple[str, int], float] = {}
    for node in data["nodes"]:
        for g in range(node["gpus"]):
            used = node.get("used", {}).get(str(g), "0Gi")
            free[node["name"], g] = memory[node["product"]] * (1 - float(data["headroom"][:-1]) / 100) - _gib(used) - 4
    for m in data["models"]:
        if chance.random() < 0.5:
            continue
        for _ in range(chance.randint(1, m["replicas"] + (chance.random() < 0.05))):
            node = chance.choice(data["nodes"])
            share = float(m["share"][:-2]) if m["share"].endswith("Gi") else (
                float(m["share"][:-1]) / 100 * memory[node["product"]])  # fmt: skip
            fits = [g for g in range(node["gpus"]) if free[node["name"], g] >= share + 3]
            chance.shuffle(fits)
            if len(fits) >= m["tensorParallelSize"]:
                gpus = fits[: m["tensorParallelSize"]]
                for g in gpus:
                    free[node["name"], g] -= share + 3
                data["running"].append({"model": m["name"], "node": node["name"], "gpus": gpus})
    if chance.random() < 0.25 and len(data["nodes"]) > 1:
        chance.choice(data["nodes"])["ready"] = False
