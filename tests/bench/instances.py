"""Packing problems from seeds, in the form of problem files: a realistic mix of 0.6B to 70B models on real products."""

from __future__ import annotations

import random
from typing import Any

Data = dict[str, Any]

MEMORY = {
    "L4-24GB": 23034, "L40S-48GB": 46068, "A100-40GB": 40960, "A100-80GB": 81920, "H100-80GB": 81559,
    "RTX-PRO-6000-96GB": 97887, "H200-141GB": 143771,
}  # fmt: skip
"""Usable MiB as nvidia-smi shows them."""
COST = {
    "L4-24GB": 1, "L40S-48GB": 2, "A100-40GB": 3, "A100-80GB": 4, "H100-80GB": 8, "RTX-PRO-6000-96GB": 4,
    "H200-141GB": 10,
}  # fmt: skip
ONE = ["H100-80GB"]
MIXED = ["L40S-48GB", "H100-80GB", "RTX-PRO-6000-96GB", "H200-141GB"]
PARAMETERS = (0.6, 1.7, 4, 8, 14, 24, 32, 70)
"""Billions; weighed towards the small ones as fleets are."""
WEIGHTS = (14, 14, 16, 22, 12, 9, 8, 5)


def model(chance: random.Random, name: str, most: int, products: list[str]) -> Data:
    """One model: weights in 4, 8 or 16 bits, cache on top, split over GPUs when one is not enough."""
    size = chance.choices(PARAMETERS, WEIGHTS)[0]
    weights = size * 1024 * chance.choice((0.55, 1.0, 1.0, 2.0))
    cache = chance.choice((1, 2, 4, 8, 16)) * 1024 * (0.5 + size / 16)
    total = weights + min(cache, 40 * 1024)
    largest = max(MEMORY[p] for p in products) * 0.9
    ranks = chance.choices((1, 2, 4, 8), (80, 10, 7, 3))[0] if size >= 14 else 1
    while total / ranks > largest:
        ranks *= 2
    share = max(1024, int(total / ranks / 256) * 256)
    data: Data = {"name": name, "share": f"{share}Mi", "overrun": f"{chance.choice((1, 1, 2, 3))}Gi",
                  "tensorParallelSize": ranks, "cpu": "1", "memory": "4Gi",
                  "replicas": 1 if chance.random() < 0.4 else min(most, chance.randint(1, 12))}  # fmt: skip
    if chance.random() < 0.3:
        data["spread"] = "GPU"
    return data


def fleet(chance: random.Random, gpus: int, products: list[str], strangers: float) -> list[Data]:
    """Nodes of 8, 4 or 2 GPUs with NVLink islands as such machines have them."""
    nodes: list[Data] = []
    left = gpus
    while left > 0:
        product = chance.choice(products)
        big = product in ("H100-80GB", "H200-141GB", "A100-80GB", "A100-40GB")
        count = min(left, 8 if big else chance.choice((4, 8)))
        node: Data = {"name": f"n{len(nodes):04d}", "product": product, "gpus": count, "cpu": "192", "memory": "2Ti"}
        if big:
            node["islands"] = [list(range(count))]
        elif chance.random() < 0.5:
            node["islands"] = [[g, g + 1] for g in range(0, count - 1, 2)]
        used = {str(g): f"{chance.randint(2, 30)}Gi" for g in range(count) if chance.random() < strangers}
        if used:
            node["used"] = used
        nodes.append(node)
        left -= count
    return nodes


def fresh(
    seed: int, gpus: int, products: list[str], fill: float = 0.75, strangers: float = 0.0, most_replicas: int = 12,
    priorities: tuple[int, ...] = (0,),
) -> Data:  # fmt: skip
    """A fleet and models for about this part of its memory; nothing runs yet."""
    chance = random.Random(seed)
    nodes = fleet(chance, gpus, products, strangers)
    room = sum(MEMORY[n["product"]] * n["gpus"] for n in nodes) * fill
    models: list[Data] = []
    while room > 0:
        found = model(chance, f"m{len(models):05d}", most_replicas, products)
        found["priority"] = chance.choice(priorities)
        room -= int(found["share"][:-2]) * found["tensorParallelSize"] * found["replicas"]
        models.append(found)
    return {
        "headroom": "5%",
        "maxTenantsPerGPU": 16,
        "products": [{"name": p, "memory": f"{MEMORY[p]}Mi", "cost": COST[p]} for p in products],
        "nodes": nodes,
        "models": models,
    }
