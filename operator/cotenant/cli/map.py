"""`cotenant map`: which model sits on which GPU with which share and flag, as a picture of every node. Nothing is written.

Each bar is one GPU's usable memory: a letter per tenant for what it is promised, ! for strangers, - for headroom
(promised to nobody; engines use some of it beyond their shares), . for what is free. "used" is what NVML says.
"""

from __future__ import annotations

import argparse
import json
import string
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.text import Text

from cotenant.cli import cluster, terminal
from cotenant.cli.replicaname import named
from cotenant.core.ask import per_node_share
from cotenant.core.inventory import Machine
from cotenant.core.ledger import Account, Tenant
from cotenant.core.memo import Memo
from cotenant.core.reconcile import Considered, consider
from cotenant.core.share import SCALE, Auto, gib
from cotenant.core.snapshot import Model, Pod, Snapshot
from cotenant.errors import CotenantError

BAR = 40
LETTERS = string.ascii_uppercase + string.ascii_lowercase
COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "bright_cyan", "bright_magenta", "bright_green")
Models = dict[tuple[str, str, str], Model]
"""By namespace, placement and model."""
UNDONE = ("Unplaced", "Waiting", "Failed")


def main(argv: list[str]) -> int:
    """0, or 1 with one line."""
    parser = terminal.Parser(
        prog="cotenant map", description=__doc__, epilog=cluster.RESOLUTION, formatter_class=argparse.RawTextHelpFormatter
    )  # fmt: skip
    parser.add_argument("node", nargs="*", metavar="NODE", help="only these nodes")
    parser.add_argument("-n", "--namespace", help="only nodes where models of this namespace are")
    cluster.add_arguments(parser, configs=False)
    terminal.add_output(parser)
    options = parser.parse_args(argv)
    try:
        view = cluster.look(options, configs=False)
    except CotenantError as error:
        print(f"cotenant map: {error}", file=sys.stderr)
        return 1
    spaces = sorted({p.namespace for p in view.snapshot.placements} | {p.namespace for p in view.snapshot.pods})
    if options.namespace is not None and options.namespace not in spaces:
        there = ", ".join(spaces) or "none"
        print(
            f"cotenant map: there is no ModelPlacement in namespace {options.namespace}; namespaces with any: {there}",
            file=sys.stderr,
        )
        return 1
    data = picture(view.snapshot, options.node, options.namespace)
    unknown = sorted(set(options.node) - {node["name"] for node in data["nodes"]})
    if unknown:
        print(f"cotenant map: there is no managed node {unknown[0]} with GPUs; see `cotenant map`", file=sys.stderr)
        return 1
    if options.output == "table":
        show(terminal.console(), data, view.notes)
    else:
        terminal.emit({**data, "notes": list(view.notes)}, options.output)
    return 0


# ---------------------------------------------------------------------------------------------------------------- data
def picture(seen: Snapshot, names: Iterable[str] = (), namespace: str | None = None) -> dict[str, Any]:
    """Every node, its GPUs and their tenants, as plain data; bytes."""
    known = consider(seen, Memo())
    wanted = set(names)
    models = {(p.namespace, p.name, model.name): model for p in seen.placements for model in p.models}
    nodes = [
        _node(machine, known, seen.policy.headroom, models)
        for name, machine in known.machines.machines.items()
        if (not wanted or name in wanted) and (namespace is None or _hosts(machine, known, namespace))
    ]
    return {"nodes": nodes, "undone": _undone(seen, namespace), "managedNodes": len(known.machines.machines)}


def _hosts(machine: Machine, known: Considered, namespace: str) -> bool:
    return any(t.pod.namespace == namespace for d in machine.devices for t in known.ledger[d.uuid].tenants)


def _node(machine: Machine, known: Considered, headroom: int, models: Models) -> dict[str, Any]:
    devices = sorted(machine.devices, key=lambda device: (device.index, device.uuid))
    return {
        "name": machine.node.name,
        "product": machine.product,
        "closed": machine.lost or machine.closed,
        "gpus": [_gpu(known.ledger[device.uuid], known, headroom, machine, models) for device in devices],
    }


def _gpu(account: Account, known: Considered, default: int, machine: Machine, models: Models) -> dict[str, Any]:
    device = account.device
    headroom = max(account.headroom, 0 if account.tenants else default)
    kept = device.usable * headroom // SCALE
    return {
        "index": device.index,
        "uuid": device.uuid,
        "usable": device.usable,
        "promised": account.promised,
        "expected": account.expected,
        "used": device.used,
        "headroom": kept,
        "headroomPercent": headroom / 100,
        "free": max(0, device.usable - kept - account.promised - account.strangers),
        "unusable": known.binding.unusable(device.uuid),
        "held": device.holder or "",
        "tenants": [_tenant(tenant, account, machine, models) for tenant in account.tenants],
        "strangers": [{"pid": s.pid, "command": s.command, "pod": s.pod, "used": s.used} for s in device.strangers],
        "unexplained": account.unexplained,
    }


def _tenant(tenant: Tenant, account: Account, machine: Machine, models: Models) -> dict[str, Any]:
    pod = tenant.pod
    model = models.get((pod.namespace, pod.placement, pod.model))
    share = per_node_share(model, machine) if model else None
    used = next((r.used for r in account.device.tenants if (r.namespace, r.pod) == (pod.namespace, pod.name)), 0)
    return {
        "namespace": pod.namespace,
        "placement": pod.placement,
        "model": pod.model,
        "replica": pod.replica,
        "pod": pod.name,
        "phase": phase(pod),
        "share": "" if share is None else str(share),
        "byAnOlderShare": share is not None
        and not isinstance(share, Auto)
        and str(share.utilization(machine.smallest)) != tenant.allocation.utilization,
        "utilization": tenant.allocation.utilization,
        "bytes": tenant.promised,
        "overrun": tenant.allocation.overrun,
        "used": used,
        "gpus": len(tenant.allocation.gpus),
    }


def phase(pod: Pod) -> str:
    """A pod's phase in the words of the status."""
    if pod.deleting:
        return "Leaving"
    if pod.ended is not None or not pod.is_alive:
        return "Ended"
    return "Ready" if pod.ready else "Starting" if pod.is_starting else "Waiting"


def _undone(seen: Snapshot, namespace: str | None) -> list[dict[str, Any]]:
    found = []
    for placement in seen.placements:
        if namespace is not None and placement.namespace != namespace:
            continue
        status = json.loads(placement.status.raw) if placement.status.raw else {}
        for model in status.get("models") or ():
            for replica in model.get("replicas") or ():
                if replica.get("phase") in UNDONE:
                    told = {name: replica.get(name, "") for name in ("phase", "reason", "message")}
                    who = {"namespace": placement.namespace, "placement": placement.name, "model": model["name"]}
                    found.append({**who, "replica": replica["index"], **told})
    return found


# ------------------------------------------------------------------------------------------------------------- showing
def show(console: Console, data: dict[str, Any], notes: tuple[str, ...] = ()) -> None:
    """The picture."""
    for note in notes:
        console.print(f"note: {note}", soft_wrap=True)
    if not data["managedNodes"]:
        console.print(
            "no managed node with GPUs; label one: kubectl label node NAME cotenant.dev/managed=true", soft_wrap=True
        )
    elif not data["nodes"]:
        console.print("no model of this namespace is on a GPU")
    for node in data["nodes"]:
        _show_node(console, node)
    for replica in data["undone"]:
        name = named((replica["namespace"], replica["placement"], replica["model"], replica["replica"]))
        style = "" if replica["phase"] == "Waiting" else "bold red"
        why = f" ({replica['reason']}): {replica['message']}" if replica["message"] else ""
        console.print(Text(f"x {name} {replica['phase']}{why}", style=style), soft_wrap=True)
    gpus = [gpu for node in data["nodes"] for gpu in node["gpus"]]
    ready = {(t["namespace"], t["pod"]) for gpu in gpus for t in gpu["tenants"] if t["phase"] == "Ready"}
    usable = sum(gpu["usable"] for gpu in gpus)
    promised = sum(gpu["promised"] for gpu in gpus)
    part = f" ({100 * promised / usable:.0f}%)" if usable else ""
    console.print(
        f"{_count(len(data['nodes']), 'node')}, {_count(len(gpus), 'GPU')}, {sum(bool(g['tenants']) for g in gpus)} in use, "
        f"{_count(len(ready), 'replica')} ready; promised {gib(promised)} of {gib(usable)}{part}, "
        f"used {gib(sum(gpu['used'] for gpu in gpus))}",
        soft_wrap=True,
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _show_node(console: Console, node: dict[str, Any]) -> None:
    title = Text(node["name"], style="bold").append(f"  {node['product'] or 'no GPU reported'}", style="not bold")
    if node["closed"]:
        title.append(f"  CLOSED: {node['closed']}", style="bold red")
    console.print(title, soft_wrap=True)
    pods = sorted({(t["namespace"], t["pod"]) for gpu in node["gpus"] for t in gpu["tenants"]})
    letters = {pod: LETTERS[at % len(LETTERS)] for at, pod in enumerate(pods)}
    for gpu in node["gpus"]:
        _show_gpu(console, gpu, letters)
    console.print()


def _show_gpu(console: Console, gpu: dict[str, Any], letters: dict[tuple[str, str], str]) -> None:
    line = Text(f"{gpu['index']:>3} ").append_text(_bar(gpu, letters))
    console.print(line.append(f" used {_number(gpu['used'])} of {gib(gpu['usable'])}, free {gib(gpu['free'])}"))
    rows = []
    for tenant in gpu["tenants"]:
        letter = letters[tenant["namespace"], tenant["pod"]]
        name = named((tenant["namespace"], tenant["placement"], tenant["model"], tenant["replica"]))
        group = f" TP {tenant['gpus']}" if tenant["gpus"] > 1 else ""
        share = f"{tenant['share']} = {tenant['utilization']}" if tenant["share"] else tenant["utilization"]
        if tenant["byAnOlderShare"]:
            share = f"{tenant['utilization']}, its spec: {tenant['share']}"
        rows.append(
            (letter, name + group, share, f"{gib(tenant['bytes'])}, uses {gib(tenant['used'])}", tenant["phase"])
        )
    width = max((len(row[1]) for row in rows), default=0)
    shares = max((len(row[2]) for row in rows), default=0)
    for letter, name, share, memory, state in rows:
        style = "" if state == "Ready" else "yellow"
        text = (
            Text("    ")
            .append(letter, style=_colour(letter))
            .append(f" {name:<{width}}  {share:<{shares}}  {memory}  ")
        )
        console.print(text.append(state, style=style), soft_wrap=True)
    for stranger in gpu["strangers"]:
        whose = f" of pod {stranger['pod']}" if stranger["pod"] else ""
        said = f"    ! stranger: pid {stranger['pid']} {stranger['command'] or '?'}{whose} uses {gib(stranger['used'])}"
        console.print(Text(said, style="red"), soft_wrap=True)
    if gpu["unexplained"]:
        console.print(Text(f"    ! {gib(gpu['unexplained'])} in use that no process accounts for", style="red"))
    if gpu["tenants"]:
        console.print(f"    - headroom {gpu['headroomPercent']:g}%, {gib(gpu['headroom'])}")
    if gpu["unusable"]:
        console.print(Text(f"    x {gpu['unusable']}", style="bold red"), soft_wrap=True)


def _bar(gpu: dict[str, Any], letters: dict[tuple[str, str], str]) -> Text:
    """Promises first, then strangers, headroom and what is free; whole cells, each part by its rounded ends."""
    strangers = sum(stranger["used"] for stranger in gpu["strangers"]) + gpu["unexplained"]
    parts = [(letters[t["namespace"], t["pod"]], t["bytes"]) for t in gpu["tenants"]]
    parts += [("!", strangers), ("-", gpu["headroom"])]
    bar, done, at = Text("["), 0, 0
    for sign, size in parts:
        at += size
        cells = min(BAR, round(BAR * at / gpu["usable"])) - done if gpu["usable"] else 0
        if cells == 0 and size and done < BAR:
            cells = 1  # a part that is there is seen
        bar.append(sign * max(0, cells), style=_colour(sign))
        done += max(0, cells)
    return bar.append("." * (BAR - done) + "]")


def _colour(sign: str) -> str:
    if sign in LETTERS:
        return COLOURS[LETTERS.index(sign) % len(COLOURS)]
    return {"!": "red", "-": "dim", ".": "dim"}[sign]


def _number(size: int) -> str:
    return gib(size).removesuffix("Gi")
