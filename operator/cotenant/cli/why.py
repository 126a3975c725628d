"""Why a replica is where it is, and why another is nowhere: the packer's own board, asked again."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace

from cotenant.cli.replicaname import key_of, named
from cotenant.core.ask import per_node_share
from cotenant.core.drift import outdated
from cotenant.core.memo import Memo
from cotenant.core.packing.board import Board
from cotenant.core.packing.packer import pack
from cotenant.core.packing.pins import pin
from cotenant.core.packing.problem import Change, Limit, Plan, Problem, Reason
from cotenant.core.packing.whyhere import on_board, why_here
from cotenant.core.planning import advised, first_question
from cotenant.core.reconcile import Considered, consider
from cotenant.core.replica import Replica
from cotenant.core.share import gib
from cotenant.core.snapshot import Model, Snapshot

NAMED = 4
"""Nodes that are named in a sentence."""


class Ground:
    """What a snapshot says of places; the packer is asked once, and only when somebody wants to know."""

    def __init__(self, seen: Snapshot) -> None:
        memo = Memo()
        self.known: Considered = consider(seen, memo)
        known = self.known
        self._asked = first_question(known.hopeful, known.site, memo)
        self._replicas = {replica.key: replica for replica in known.replicas}
        self._outdated: dict[Hashable, bool] = {}
        self._packed: Plan | None = None
        self._board: Board | None = None
        self._numbers = {
            member.key: (workload, number)
            for workload, members in self._asked.groups.items()
            for number, member in enumerate(members)
        }

    def replica(self, key: str) -> Replica | None:
        """A replica by `namespace/placement/model/index`."""
        return self._replicas.get(key)

    def is_outdated(self, key: str) -> bool:
        """Whether a replica's engine runs by another spec than the present one."""
        found = self.replica(key)
        given = found.pod.allocation if found and found.pod else None
        machine = self.known.machines.machines.get(given.node) if given else None
        if found is None or given is None or machine is None:
            return False
        share = per_node_share(found.wanted.model, machine)
        alike = (
            found.wanted.key, found.share, found.learned, found.pod and found.pod.hash, given.utilization, share,
            machine.product, machine.smallest, machine.largest,
        )  # fmt: skip
        if alike not in self._outdated:  # many replicas of one model on equal GPUs are one question
            self._outdated[alike] = outdated(found, machine, self.known.site.policy)
        return self._outdated[alike]

    def share(self, model: Model, node: str) -> str:
        """A model's share as it is written for this node."""
        machine = self.known.machines.machines.get(node)
        return str(per_node_share(model, machine) if machine else model.share)

    def here(self, key: str) -> list[str]:
        """Why a replica that has a place has this one."""
        found, number = self.replica(key), self._numbers.get(key)
        allocation = found.pod.allocation if found and found.pod else None
        if allocation is None:
            return []
        beside = sorted(
            {
                named(key_of(tenant.pod))
                for uuid in allocation.gpus
                if uuid in self.known.ledger
                for tenant in self.known.ledger[uuid].tenants
                if found and found.pod and tenant.pod.uid != found.pod.uid
            }
        )
        lines = [
            "what runs stays: it is moved only when its node is lost, its share no longer fits, or a higher priority needs the room"
        ]
        if beside:
            lines.append(f"shares with {', '.join(beside)}: no further GPU is used for it")
        if number is not None:
            lines.append(f"against the best other place now: {self.against_others(key)}")
            lines.extend(self._alternatives(*number, allocation.node))
        return lines

    def against_others(self, key: str) -> str:
        """What this place wins by, were the replica to be placed anew; '' where the packer did not place it."""
        number = self._numbers.get(key)
        if self._board is None:
            self._board = on_board(self._asked.problem, self._plan())
        board = self._board
        found = next(
            (
                r
                for r, owner in enumerate(board.owner)
                if (board.workloads[owner].key, board.number[r]) == number and board.spot[r]
            ),
            None,
        )
        if found is None:
            return ""
        runs, board.runs[found] = board.runs[found], False
        text = why_here(board, found).text
        board.runs[found] = runs
        return text

    def _plan(self) -> Plan:
        if self._packed is None:
            self._packed = pack(self._asked.problem)
        return self._packed

    def _alternatives(self, workload: str, number: int, node: str) -> list[str]:
        """Where else it would fit right now, were it not where it is."""
        problem = self._asked.problem
        gone = tuple(r for r in problem.running if (r.workload, r.replica) != (workload, number))
        fits = [name for name in _fitting(replace(problem, running=gone), workload) if name != node]
        others = len([host for host in problem.hosts if host.name != node])
        if not others:
            return ["there is no other managed node"]
        names = ", ".join(fits[:NAMED]) + (f" and {len(fits) - NAMED} more" if len(fits) > NAMED else "")
        return [
            f"of {others} other node{'s' * (others > 1)} {len(fits)} could take it now" + (f": {names}" if fits else "")
        ]

    def reason(self, key: str) -> Reason | None:
        """Why a replica has no place, as data; None where the packer was not asked, or has one for it."""
        found, number = self.replica(key), self._numbers.get(key)
        reason = next((u.reason for u in self._plan().unplaced if (u.workload, u.replica) == number), None)
        return advised(found, reason) if found and reason else reason

    def nowhere(self, key: str) -> list[str]:
        """The same in words: per class of nodes what binds, and the smallest changes that would help."""
        reason = self.reason(key)
        return [*map(_limit, reason.limits), *map(_change, reason.changes)] if reason else []


def _fitting(problem: Problem, workload: str) -> list[str]:
    """Hosts that could take one more replica of a workload as things stand."""
    board = Board(problem)
    pin(board)
    w = next(at for at, known in enumerate(board.workloads) if known.key == workload)
    found = []
    for h, host in enumerate(board.hosts):
        room = sum(board.fits(w, g) for g in board.host_gpus[h])
        if room >= board.size[w] and board.host_fits(w, h):
            found.append(host.name)
    return found


def _limit(limit: Limit) -> str:
    what = f"{limit.hosts} node{'s' * (limit.hosts != 1)} with {limit.product or 'no GPU reported'}: {limit.code}"
    if limit.code in ("Memory", "Overrun", "HostMemory"):
        return f"{what}: needs {gib(limit.needs)}, {limit.nearest} has the most, {gib(limit.has)}"
    if limit.code == "HostCPU":
        return f"{what}: needs {limit.needs / 1000:g}, {limit.nearest} has {limit.has / 1000:g}"
    return (
        f"{what}: needs {limit.needs}, {limit.nearest} has {limit.has}" if limit.needs else f"{what} ({limit.nearest})"
    )


def _change(change: Change) -> str:
    if change.code == "LessShare":
        return f"would help: a share of {change.percent / 100:g}% ({gib(change.share)}), on {change.host}"
    if change.code == "FewerGPUs":
        return f"would help: tensorParallelSize {change.share}, on {change.host}"
    if change.code == "Move":
        consent = f", with the leave of {change.consent}" if change.consent else ""
        return f"would help: {change.workload}/{change.replica} elsewhere than {change.host}{consent}"
    return f"would help: {change.text}"
