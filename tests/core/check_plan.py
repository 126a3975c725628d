"""Checks an answer against its problem file from first principles; shares no code with the packer."""

from __future__ import annotations

from collections import Counter, defaultdict
from decimal import ROUND_CEILING, Decimal
from fractions import Fraction
from typing import Any

Data = dict[str, Any]
UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def size(value: str | int) -> int:
    """A quantity in whole units."""
    text = str(value)
    for unit, factor in UNITS.items():
        if text.endswith(unit):
            return int((Decimal(text[: -len(unit)]) * factor).to_integral_value(ROUND_CEILING))
    return int((Decimal(text[:-1]) / 1000 if text.endswith("m") else Decimal(text)).to_integral_value(ROUND_CEILING))


def millis(value: str | int | float) -> int:
    """CPUs in thousandths."""
    text = str(value)
    return int(text[:-1]) if text.endswith("m") else int(Decimal(text) * 1000)


def check(problem: Data, answer: Data, move_equals: bool = False, moves: int | None = None) -> None:
    """AssertionError where the answer breaks a rule of the problem."""
    _Check(problem, answer).run(move_equals, moves)


class _Check:
    def __init__(self, problem: Data, answer: Data) -> None:
        self.problem, self.answer = problem, answer
        self.products = {p["name"]: p for p in problem.get("products", [])}
        self.nodes = {n["name"]: n for n in problem.get("nodes", [])}
        self.models = {m["name"]: m for m in problem.get("models", [])}
        self.headroom = Fraction(str(problem.get("headroom", "0%")).rstrip("%")) / 100
        self.grain = size(problem.get("granularity", 1))
        self.placements = answer["placements"]

    def run(self, move_equals: bool, moves: int | None) -> None:
        self.everything_is_accounted_for()
        self.every_place_is_allowed()
        self.no_gpu_is_over_packed()
        self.no_host_is_over_packed()
        self.replicas_are_apart()
        self.moves_are_as_told(move_equals, moves)
        self.the_key_is_right()

    def memory(self, node: Data) -> int:
        return size(self.products[node["product"]]["memory"])

    def share(self, model: Data, node: Data) -> int:
        text = str(model["share"])
        if text.endswith("%"):
            return int(Fraction(text[:-1]) * self.memory(node) / 100)
        return size(text)

    def up(self, amount: int) -> int:
        return -(-amount // self.grain) * self.grain

    def everything_is_accounted_for(self) -> None:
        wanted = {(m["name"], i) for m in self.models.values() for i in range(m.get("replicas", 1))}
        placed = [(p["model"], p["replica"]) for p in self.placements]
        unplaced = [(u["model"], u["replica"]) for u in self.answer["unplaced"]]
        assert Counter(placed + unplaced) == Counter(wanted)
        for u in self.answer["unplaced"]:
            assert u["message"], u
            assert u["reason"]["code"], u

    def every_place_is_allowed(self) -> None:
        for p in self.placements:
            model, node = self.models[p["model"]], self.nodes[p["node"]]
            gpus = p["gpus"]
            assert len(set(gpus)) == len(gpus) == model.get("tensorParallelSize", 1), p
            assert all(0 <= g < node["gpus"] for g in gpus), p
            assert node.get("ready", True), p
            assert not model.get("products") or node["product"] in model["products"], p
            labels = node.get("labels", {})
            assert all(labels.get(k) == v for k, v in model.get("selector", {}).items()), p
            assert self.share(model, node) >= size(model.get("atLeast", 0)), p
            if model.get("island") == "Required":
                assert len({self.island(node, g) for g in gpus}) == 1, p

    def island(self, node: Data, gpu: int) -> tuple[str, object]:
        for number, island in enumerate(node.get("islands", [])):
            if gpu in island:
                return (node["name"], number)
        return (node["name"], f"alone {gpu}")

    def tenants(self) -> dict[tuple[str, int], list[str]]:
        found: dict[tuple[str, int], list[str]] = defaultdict(list)
        for p in self.placements:
            for g in p["gpus"]:
                found[p["node"], g].append(p["model"])
        return found

    def used(self, node: Data, gpu: int) -> int:
        used = {str(k): v for k, v in node.get("used", {}).items()}
        return size(used.get(str(gpu), 0))

    def no_gpu_is_over_packed(self) -> None:
        for (name, gpu), tenants in self.tenants().items():
            node = self.nodes[name]
            memory, used = self.memory(node), self.used(node, gpu)
            kept = int(memory * self.headroom)
            shares = sum(self.up(self.share(self.models[m], node)) for m in tenants)
            overruns = sum(self.up(size(self.models[m].get("overrun", 0))) for m in tenants)
            assert shares + used + kept <= memory, (name, gpu, tenants)
            assert shares + overruns + used <= memory, (name, gpu, tenants)
            assert len(tenants) <= self.problem.get("maxTenantsPerGPU", 16), (name, gpu, tenants)

    def no_host_is_over_packed(self) -> None:
        for name, node in self.nodes.items():
            here = [self.models[p["model"]] for p in self.placements if p["node"] == name]
            if "cpu" in node:
                assert sum(millis(m.get("cpu", 0)) for m in here) <= millis(node["cpu"]), name
            if "memory" in node:
                assert sum(size(m.get("memory", 0)) for m in here) <= size(node["memory"]), name

    def replicas_are_apart(self) -> None:
        for (name, gpu), tenants in self.tenants().items():
            for m, count in Counter(tenants).items():
                assert count == 1 or self.models[m].get("spread", "None") == "None", (name, gpu, m)
        on_node = Counter((p["model"], p["node"]) for p in self.placements)
        for (m, node), count in on_node.items():
            assert count == 1 or self.models[m].get("spread", "None") != "Node", (node, m)

    # --------------------------------------------------------------------------------------------------------- moves
    def running(self) -> dict[str, Counter[tuple[str, tuple[int, ...]]]]:
        found: dict[str, Counter[tuple[str, tuple[int, ...]]]] = defaultdict(Counter)
        for r in self.problem.get("running", []):
            found[r["model"]][r["node"], tuple(sorted(r["gpus"]))] += 1
        return found

    def count_moves(self) -> int:
        """Running replicas still wanted and not left exactly where they are."""
        total = 0
        for m, places in self.running().items():
            now = Counter((p["node"], tuple(sorted(p["gpus"]))) for p in self.placements if p["model"] == m)
            total += min(sum(places.values()), self.models[m].get("replicas", 1)) - sum((places & now).values())
        return total

    def may_stay(self, entry: Data) -> bool:
        """Whether a running replica could be left alone, as far as it alone is concerned."""
        model, node = self.models[entry["model"]], self.nodes[entry["node"]]
        if not node.get("ready", True) or len(entry["gpus"]) != model.get("tensorParallelSize", 1):
            return False
        if model.get("products") and node["product"] not in model["products"]:
            return False
        if any(node.get("labels", {}).get(k) != v for k, v in model.get("selector", {}).items()):
            return False
        if self.share(model, node) < size(model.get("atLeast", 0)):
            return False
        return model.get("island") != "Required" or len({self.island(node, g) for g in entry["gpus"]}) == 1

    def all_may_stay(self) -> bool:
        """Whether what runs, all of it, breaks no rule where it is."""
        running = self.problem.get("running", [])
        counts = Counter(r["model"] for r in running)
        if any(counts[m] > self.models[m].get("replicas", 1) for m in counts) or not all(map(self.may_stay, running)):
            return False
        placements = [{"model": r["model"], "node": r["node"], "gpus": r["gpus"]} for r in running]
        still = _Check(self.problem, {"placements": placements, "unplaced": []})
        try:
            still.no_gpu_is_over_packed()
            still.no_host_is_over_packed()
            still.replicas_are_apart()
        except AssertionError:
            return False
        return True

    def moves_are_as_told(self, move_equals: bool, moves: int | None) -> None:
        assert self.answer["key"]["moves"] == self.count_moves()
        if not self.all_may_stay():
            return
        # nothing had to move: whatever moved or was displaced made room for something higher that is new
        disturbed = []
        for m, places in self.running().items():
            now = Counter((p["node"], tuple(sorted(p["gpus"]))) for p in self.placements if p["model"] == m)
            gone = sum((places - now).values())
            assert gone <= 1, f"{gone} replicas of {m} disturbed at once"
            disturbed += [m] * gone
        before = {m: sum(places.values()) for m, places in self.running().items()}
        after = Counter(p["model"] for p in self.placements)
        new = {m: after[m] - before.get(m, 0) for m in after if after[m] > before.get(m, 0)}
        assert len(disturbed) <= 3 * sum(new.values()), "more than three moves per newly placed replica"
        assert moves is None or len(disturbed) <= moves
        highest = max((self.models[m].get("priority", 0) for m in new), default=None)
        for m in disturbed:
            rank = self.models[m].get("priority", 0)
            assert highest is not None, "something moved and nothing was newly placed"
            assert rank < highest or (move_equals and rank == highest), f"{m} moved for something not above it"

    # ----------------------------------------------------------------------------------------------------------- key
    def the_key_is_right(self) -> None:
        key = self.answer["key"]
        unplaced = Counter(str(self.models[u["model"]].get("priority", 0)) for u in self.answer["unplaced"])
        assert key["unplaced"] == dict(unplaced)
        splits = 0
        for p in self.placements:
            splits += len({self.island(self.nodes[p["node"]], g) for g in p["gpus"]}) > 1
        assert key["splits"] == splits
        opened = [at for at in self.tenants() if not self.used(self.nodes[at[0]], at[1])]
        costs = [self.products[self.nodes[name]["product"]].get("cost") for name, _ in opened]
        if all(cost is not None for cost in costs):
            assert key["cost"] == sum(costs)
            assert self.answer["bound"] is None or self.answer["bound"]["cost"] <= key["cost"]
        assert key["islands"] == len({self.island(self.nodes[name], g) for name, g in self.tenants()})
