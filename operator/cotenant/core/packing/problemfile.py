"""Problem files: one packing problem in the CR's terms, as plain data -> Problem."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import lcm
from typing import TypeVar

from cotenant.core.packing import values
from cotenant.core.packing.fields import Fields, describe, indices
from cotenant.core.packing.problem import Bin, Demand, Host, Problem, Running, Workload
from cotenant.core.share import SCALE, Bytes, Percent, Share
from cotenant.core.snapshot import Labels, Spread, matches
from cotenant.errors import InvalidSpec

PROBLEM = ("headroom", "maxTenantsPerGPU", "granularity", "products", "nodes", "models", "running")
PRODUCT = ("name", "memory", "cost")
NODE = ("name", "product", "gpus", "islands", "labels", "used", "cpu", "memory", "ready")
MODEL = (
    "name", "share", "atLeast", "overrun", "tensorParallelSize", "replicas", "spread", "priority", "products",
    "selector", "island", "cpu", "memory",
)  # fmt: skip
RUNNING = ("model", "node", "gpus")

UNLIMITED_CPU = 1 << 50
UNLIMITED_MEMORY = 1 << 60
MAX_GPUS = 1024
MAX_REPLICAS = 1_000_000


@dataclass(frozen=True, slots=True)
class Product:
    """A kind of GPU."""

    name: str
    memory: int
    cost: Fraction


@dataclass(frozen=True, slots=True)
class Machine:
    """A node as the file has it."""

    name: str
    product: Product
    gpus: int
    islands: tuple[tuple[int, ...], ...]
    labels: Labels
    used: tuple[tuple[int, int], ...]
    cpu: int
    memory: int
    ready: bool


@dataclass(frozen=True, slots=True)
class Ask:
    """A model as the file has it."""

    name: str
    share: Share
    at_least: int
    overrun: int
    gpus: int
    replicas: int
    spread: Spread
    priority: int
    products: tuple[str, ...]
    selector: Labels
    same_island: bool
    cpu: int
    memory: int


T = TypeVar("T", Product, Machine, Ask)


@dataclass(frozen=True, slots=True)
class ProblemFile:
    """What a file says, as a problem, and how its costs are to be printed."""

    problem: Problem
    cost_scale: int = 1
    """The problem's costs are the file's times this, so that they are whole."""


def read_problem(data: object) -> ProblemFile:
    """The problem in this data; InvalidSpec names the field that is wrong."""
    top = Fields(data, "", PROBLEM)
    headroom = top.parsed("headroom", values.headroom, 0)
    grain = top.parsed("granularity", values.positive, 1)
    products = _by_name("product", [_product(entry, path) for path, entry in top.listed("products")], "products")
    machines = _by_name("node", [_machine(e, path, products) for path, e in top.listed("nodes")], "nodes")
    asks = _by_name("model", [_ask(e, path, products) for path, e in top.listed("models")], "models")
    kinds = _Kinds(list(asks.values()), list(machines.values()))
    scale = 1
    for product in products.values():
        scale = lcm(scale, product.cost.denominator)
    problem = Problem(
        hosts=tuple(_host(machine, kinds, scale) for machine in machines.values()),
        workloads=tuple(_workload(ask, kinds, headroom, grain) for ask in asks.values()),
        running=_running(top.listed("running"), machines, asks),
        max_tenants=top.whole("maxTenantsPerGPU", 16, 1),
        grain=grain,
    )
    return ProblemFile(problem, scale)


def gpu_name(index: int) -> str:
    """A GPU of a file as the packer calls it: sorts as its index does."""
    return f"{index:04d}"


def _by_name(what: str, entries: list[T], field: str) -> dict[str, T]:
    found: dict[str, T] = {}
    for at, entry in enumerate(entries):
        if entry.name in found:
            raise InvalidSpec(f"{field}[{at}].name", f'there are two {what}s named "{entry.name}"; names are unique')
        found[entry.name] = entry
    return found


def _product(data: object, path: str) -> Product:
    of = Fields(data, path, PRODUCT)
    memory = of.parsed("memory", values.positive)
    cost = of.parsed("cost", values.cost, Fraction(max(1, memory >> 30)))
    return Product(of.text("name"), memory, cost)


def _machine(data: object, path: str, products: dict[str, Product]) -> Machine:
    of = Fields(data, path, NODE)
    name, product = of.text("name"), of.text("product")
    if product not in products:
        raise InvalidSpec(of.at("product"), f'there is no product "{product}"; known are {_names(products)}')
    gpus = of.whole("gpus", most=MAX_GPUS)
    islands, seen = [], set[int]()
    for where, entry in of.listed("islands"):
        island = indices(entry, where, gpus, name)
        twice = seen & set(island)
        if twice:
            raise InvalidSpec(where, f"GPU {min(twice)} is in two islands")
        seen |= set(island)
        islands.append(tuple(island))
    used: list[tuple[int, int]] = []
    for key, value in of.mapped("used").items():
        where = f"{of.at('used')}.{key}"
        text = str(key)
        if any(int(text) == g for g, _ in used if text.isdecimal()):
            raise InvalidSpec(where, f"GPU {int(text)} is named twice")
        if isinstance(key, bool) or not text.isdecimal() or int(text) >= gpus:
            raise InvalidSpec(where, f"node {name} has no GPU {key}; it has {gpus}, counted from 0")
        try:
            used.append((int(text), values.quantity(value)))
        except ValueError as e:
            raise InvalidSpec(where, str(e)) from e
    return Machine(
        name=name,
        product=products[product],
        gpus=gpus,
        islands=tuple(islands),
        labels=of.labels("labels"),
        used=tuple(used),
        cpu=of.parsed("cpu", values.cpu, UNLIMITED_CPU),
        memory=of.parsed("memory", values.quantity, UNLIMITED_MEMORY),
        ready=of.flag("ready", True),
    )


def _ask(data: object, path: str, products: dict[str, Product]) -> Ask:
    of = Fields(data, path, MODEL)
    allowed = []
    for where, entry in of.listed("products"):
        if not isinstance(entry, str) or entry not in products:
            raise InvalidSpec(where, f"there is no product {describe(entry)}; known are {_names(products)}")
        allowed.append(entry)
    return Ask(
        name=of.text("name"),
        share=of.parsed("share", values.share),
        at_least=of.parsed("atLeast", values.quantity, 0),
        overrun=of.parsed("overrun", values.quantity, 0),
        gpus=of.whole("tensorParallelSize", 1, 1, MAX_GPUS),
        replicas=of.whole("replicas", 1, 0, MAX_REPLICAS),
        spread=Spread(of.choice("spread", ("None", "GPU", "Node"), "None")),
        priority=of.whole("priority", 0, None, 1 << 31),
        products=tuple(allowed),
        selector=of.labels("selector"),
        same_island=of.choice("island", ("Preferred", "Required"), "Preferred") == "Required",
        cpu=of.parsed("cpu", values.cpu, 0),
        memory=of.parsed("memory", values.quantity, 0),
    )


class _Kinds:
    """Nodes told apart by what some model could tell apart: the product and which selectors hold."""

    def __init__(self, asks: list[Ask], machines: list[Machine]) -> None:
        self.selectors = sorted({ask.selector for ask in asks if ask.selector})
        self.numbers: dict[tuple[object, ...], int] = {}
        self.examples: list[Machine] = []
        for machine in machines:
            self.of(machine)

    def of(self, machine: Machine) -> int:
        """The kind of this node."""
        signature = (machine.product.name, tuple(matches(s, machine.labels) for s in self.selectors))
        if signature not in self.numbers:
            self.numbers[signature] = len(self.examples)
            self.examples.append(machine)
        return self.numbers[signature]


def _host(machine: Machine, kinds: _Kinds, scale: int) -> Host:
    used = dict(machine.used)
    island = {g: number for number, members in enumerate(machine.islands) for g in members}
    bins = tuple(
        Bin(gpu_name(g), machine.product.memory, used.get(g, 0), island.get(g)) for g in range(machine.gpus)
    )  # fmt: skip
    return Host(
        name=machine.name,
        kind=kinds.of(machine),
        bins=bins,
        cpu=machine.cpu,
        memory=machine.memory,
        product=machine.product.name,
        cost=int(machine.product.cost * scale),
        ready=machine.ready,
    )


def _workload(ask: Ask, kinds: _Kinds, headroom: int, grain: int) -> Workload:
    judged = [_demand(ask, machine, grain) for machine in kinds.examples]
    return Workload(
        key=ask.name,
        replicas=ask.replicas,
        gpus=ask.gpus,
        demands=tuple(demand for demand, _ in judged),
        spread=ask.spread,
        priority=ask.priority,
        headroom=headroom,
        cpu=ask.cpu,
        memory=ask.memory,
        same_island=ask.same_island,
        refused=tuple(why for _, why in judged),
    )


def _demand(ask: Ask, machine: Machine, grain: int) -> tuple[Demand | None, str]:
    product = machine.product
    if ask.products and product.name not in ask.products:
        return None, f"products are {', '.join(ask.products)}, this is {product.name}"
    if not matches(ask.selector, machine.labels):
        missing = sorted(set(ask.selector) - set(machine.labels))
        return None, "not selected: lacks " + ", ".join(f"{key}={value}" for key, value in missing)
    share = ask.share.bytes if isinstance(ask.share, Bytes) else _part(ask.share, product.memory)
    if share < ask.at_least:
        return None, f"{ask.share} of {product.name} is less than atLeast"
    return Demand(_up(share, grain), _up(ask.overrun, grain)), ""


def _part(share: Share, memory: int) -> int:
    assert isinstance(share, Percent)
    return memory * share.ten_thousandths // SCALE


def _up(amount: int, grain: int) -> int:
    # rounding demands up also rounds rooms down: what is left over of a room is less than any demand
    return -(-amount // grain) * grain


def _running(
    entries: list[tuple[str, object]], machines: dict[str, Machine], asks: dict[str, Ask]
) -> tuple[Running, ...]:
    """The replicas that stay wanted, numbered; of more than are wanted those leave first that cannot stay anyway."""
    by_model: dict[str, list[tuple[bool, str, tuple[int, ...]]]] = {}
    for path, entry in entries:
        of = Fields(entry, path, RUNNING)
        model, node = of.text("model"), of.text("node")
        if model not in asks:
            raise InvalidSpec(of.at("model"), f'there is no model "{model}"; list it, with replicas: 0 if it leaves')
        if node not in machines:
            raise InvalidSpec(of.at("node"), f'there is no node "{node}"; list it, with ready: false if it is gone')
        gpus = indices(of.take("gpus"), of.at("gpus"), machines[node].gpus, node)
        if not gpus:
            raise InvalidSpec(of.at("gpus"), "must name at least one GPU")
        by_model.setdefault(model, []).append((not _may_stay(asks[model], machines[node], gpus), node, tuple(gpus)))
    found = []
    for model, places in sorted(by_model.items()):
        for number, (_, node, gpu) in enumerate(sorted(places)[: asks[model].replicas]):
            found.append(Running(model, number, node, tuple(gpu_name(g) for g in gpu)))
    return tuple(found)


def _may_stay(ask: Ask, machine: Machine, gpus: list[int]) -> bool:
    """Whether the node and the shape allow it; whether there is room is the packer's to judge."""
    islands = {next((n for n, i in enumerate(machine.islands) if g in i), -1 - g) for g in gpus}
    shaped = len(gpus) == ask.gpus and not (ask.same_island and len(islands) > 1)
    return machine.ready and shaped and _demand(ask, machine, 1)[0] is not None


def _names(things: dict[str, Product]) -> str:
    return ", ".join(sorted(things)) or "none"
