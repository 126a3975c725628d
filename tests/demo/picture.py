"""The end of the demo: which model sits on which GPU with which share and flag, the conditions, and what to try next."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

Object = dict[str, Any]
GIB = 1 << 30
WIDTH = 40
COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red")


def picture(placements: list[Object], gpu_nodes: list[Object], pods: list[Object]) -> RenderableType:
    """Every node with its GPUs as bars, then the placements' models and conditions."""
    colours = {
        (placement["metadata"]["namespace"], placement["metadata"]["name"], model["name"]): colour
        for placement in placements
        for model, colour in zip(placement["spec"]["models"], _colours(), strict=False)
    }
    tenants = {(pod["metadata"]["namespace"], pod["metadata"]["name"]): pod for pod in pods}
    nodes = [
        _node(node, tenants, colours) for node in sorted(gpu_nodes, key=lambda node: str(node["metadata"]["name"]))
    ]
    return Group(*nodes, *(_placement(placement, tenants) for placement in placements))


def _colours() -> Iterable[str]:
    while True:
        yield from COLOURS


def _node(
    node: Object, tenants: Mapping[tuple[str, str], Object], colours: Mapping[tuple[str, str, str], str]
) -> Panel:
    gpus = (node.get("status") or {}).get("gpus") or []
    table = Table.grid(padding=(0, 2))
    for gpu in gpus:
        table.add_row(Text(f"GPU {gpu['index']}"), _bar(gpu, tenants, colours), _legend(gpu, tenants, colours))
    product = gpus[0]["product"] if gpus else "no GPU"
    return Panel(table, title=f"{node['metadata']['name']}  {product}", title_align="left", expand=False)


def _engines(gpu: Object, tenants: Mapping[tuple[str, str], Object]) -> list[tuple[Object, Object]]:
    found = ((tenant, tenants.get((tenant["namespace"], tenant["pod"]))) for tenant in gpu.get("tenants") or ())
    return [(tenant, pod) for tenant, pod in found if pod]


def _colour(pod: Object, colours: Mapping[tuple[str, str, str], str]) -> str:
    labels = pod["metadata"]["labels"]
    key = (pod["metadata"]["namespace"], labels.get("cotenant.dev/placement", ""), labels.get("cotenant.dev/model", ""))
    return colours.get(key, "white")


def _bar(gpu: Object, tenants: Mapping[tuple[str, str], Object], colours: Mapping[tuple[str, str, str], str]) -> Text:
    usable = gpu["memory"]["total"] - gpu["memory"].get("reserved", 0)
    bar, cells = Text("▕"), 0
    for tenant, pod in _engines(gpu, tenants):
        width = min(WIDTH - cells, round(WIDTH * tenant["used"] / usable))
        bar.append("█" * width, style=_colour(pod, colours))
        cells += width
    bar.append("·" * (WIDTH - cells), style="dim")
    return bar.append("▏")


def _legend(
    gpu: Object, tenants: Mapping[tuple[str, str], Object], colours: Mapping[tuple[str, str, str], str]
) -> Text:
    usable = gpu["memory"]["total"] - gpu["memory"].get("reserved", 0)
    legend = Text(f"{gpu['memory']['used'] / GIB:5.1f} of {usable / GIB:.1f}Gi")
    for _, pod in _engines(gpu, tenants):
        model = pod["metadata"]["labels"].get("cotenant.dev/model", pod["metadata"]["name"])
        legend.append(f"  {model} {flag(pod)}", style=_colour(pod, colours))
    return legend


def flag(pod: Object) -> str:
    """The live pod's `--gpu-memory-utilization`."""
    args = [str(word) for word in pod["spec"]["containers"][0].get("args") or ()]
    for i, word in enumerate(args):
        name, joined, value = word.partition("=")
        if name == "--gpu-memory-utilization":
            return value if joined else args[i + 1]
    return "?"


def _placement(placement: Object, tenants: Mapping[tuple[str, str], Object]) -> Panel:
    status = placement.get("status") or {}
    shares = {model["name"]: model["share"] for model in placement["spec"]["models"]}
    table = Table("model", "share", "--gpu-memory-utilization", "replica", "phase", "node", "GPU", "memory", box=None)
    for model in status.get("models") or ():
        for replica in model.get("replicas") or ():
            pod = tenants.get((placement["metadata"]["namespace"], replica.get("pod", "")))
            table.add_row(
                model["name"],
                str(shares.get(model["name"], "")),
                flag(pod) if pod else replica.get("utilization", ""),
                str(replica["index"]),
                replica["phase"],
                replica.get("node", ""),
                ", ".join(uuid[:12] for uuid in replica.get("gpus") or ()),
                replica.get("memory", ""),
            )
    conditions = Table("condition", "status", "reason", "message", box=None)
    for condition in status.get("conditions") or ():
        conditions.add_row(condition["type"], condition["status"], condition["reason"], condition.get("message", ""))
    name = f"ModelPlacement {placement['metadata']['namespace']}/{placement['metadata']['name']}  {status.get('summary', '')}"
    return Panel(Group(table, Text(), conditions), title=name, title_align="left", expand=False)


def console() -> Console:
    """The terminal, or 120 plain columns where there is none."""
    terminal = Console(highlight=False)
    return terminal if terminal.is_terminal else Console(highlight=False, width=max(120, terminal.width))
