"""A GPU's ledger in words."""

from __future__ import annotations

from cotenant.cli.replicaname import key_of, named
from cotenant.core.ledger import Account, Tenant
from cotenant.core.share import SCALE, gib
from cotenant.core.snapshot import Pod


def of_gpu(account: Account, pod: Pod) -> list[str]:
    """What is promised, expected and used on a GPU, as one of its tenants would want it told."""
    device = account.device
    names = [_name(tenant, pod) for tenant in account.tenants]
    shares = " + ".join(f"{gib(t.promised)} {name}" for t, name in zip(account.tenants, names, strict=True))
    overruns = " + ".join(gib(tenant.allocation.overrun) for tenant in account.tenants)
    strangers = f" + {gib(account.strangers)} strangers" if account.strangers else ""
    limit = device.usable - device.usable * account.headroom // SCALE
    promised, expected = account.promised + account.strangers, account.expected + account.strangers
    held = {(reading.namespace, reading.pod): reading.used for reading in device.tenants}
    used = ", ".join(
        f"{name} {gib(held.get((t.pod.namespace, t.pod.name), 0))}"
        for t, name in zip(account.tenants, names, strict=True)
    )
    lines = [
        f"GPU {device.index}: promised {shares}{strangers} = {gib(promised)} {_than(promised, limit)} {gib(limit)} "
        f"(T - headroom {account.headroom / 100:g}%)",
        f"  expected: + overruns {overruns} = {gib(expected)} {_than(expected, device.usable)} {gib(device.usable)} (T)",
        f"  really used: {gib(device.used)} ({used})",
    ]
    lines += [
        f"  over its share: {_name(tenant, pod)} by {gib(excess)} beyond share + overrun"
        for tenant, excess in account.over()
    ]
    lines += [
        f"  stranger: pid {s.pid} {s.command or '?'}{f' of pod {s.pod}' if s.pod else ''} uses {gib(s.used)}"
        for s in device.strangers
    ]
    return lines


def _name(tenant: Tenant, pod: Pod) -> str:
    return "this" if tenant.pod.uid == pod.uid else named(key_of(tenant.pod))


def _than(left: int, right: int) -> str:
    return "<=" if left <= right else ">"
