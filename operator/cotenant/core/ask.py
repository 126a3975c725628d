"""What a replica asks of each GPU on one machine: the share as written, or what `auto` comes to, or why none can do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from cotenant.core.estimate.advice import at_share, auto_context, auto_share, refuse, sized
from cotenant.core.estimate.engine import Taught
from cotenant.core.inventory import Machine
from cotenant.core.learn import recall
from cotenant.core.pod import allocated_hash, lesson, model_wish
from cotenant.core.replica import NoPlace, Replica
from cotenant.core.share import SCALE, Auto, Bytes, Percent, Share, Utilization, read_utilization
from cotenant.core.snapshot import Learned, Model, Policy, matches


@dataclass(frozen=True, slots=True)
class Ask:
    """A share that the packer can weigh. Bytes are per GPU."""

    utilization: Utilization
    bytes: int
    """On the machine's largest GPU."""
    overrun: int
    max_model_len: int | None = None
    reserve: int = 0
    """To be kept free beside both: its remedy is that tenants of lower priority give it up."""


def ask(replica: Replica, machine: Machine, policy: Policy) -> Ask | NoPlace:
    """What this replica asks on this machine. The same for the same arguments: callers remember it."""
    model, config = replica.wanted.model, replica.config
    written = per_node_share(model, machine)
    share = within(replica.share, model, machine) if replica.share else written
    # the length its share was sized for: it starts with it, so it is judged by it too
    length = auto_context(config, model.engine) if isinstance(written, Auto) and config is not None else None
    if isinstance(share, Auto) and (kept := _as_it_runs(replica, machine, policy)):
        share = kept
    if isinstance(share, Auto):
        if config is None:
            return NoPlace("EstimateUnavailable", _no_config(model))
        earlier = known(replica, machine.product, "", policy)
        auto = auto_share(config, model.engine, model.tensor_parallel, Taught(earlier.weights) if earlier else None)
        share = Bytes(auto.bytes)
    utilization = share.utilization(machine.smallest)
    granted = utilization.of(machine.largest)
    taught = known(replica, machine.product, str(utilization), policy)
    overrun = taught.overrun if taught and taught.overrun is not None else _overrun(replica, granted, policy)
    if utilization.ten_thousandths > SCALE:
        return Ask(utilization, granted, overrun, length, replica.reserve)  # the packer says who comes nearest
    if config is not None and replica.share is None and not (taught and taught.kv_cache_tokens):
        refusal = refuse(config, sized(model.engine, length), model.tensor_parallel, utilization.of(machine.smallest))
        if refusal is not None:
            percent = -(-refusal.needs * 100 // machine.smallest) if machine.smallest else 0
            would = f"; {percent}% of {machine.product} would do" if 0 < percent <= 100 else ""
            return NoPlace(refusal.reason, refusal.message + would, percent=percent if would else 0)
    return Ask(utilization, granted, overrun, length, replica.reserve)


def could_run_with(replica: Replica, share: int) -> bool:
    """Whether a share of so many bytes is worth advising: nothing known says that its engine could not start with it."""
    model, config = replica.wanted.model, replica.config
    if config is None:
        return True
    length = auto_context(config, model.engine) if isinstance(model.share, Auto) else None
    return refuse(config, sized(model.engine, length), model.tensor_parallel, share) is None


def _overrun(replica: Replica, share: int, policy: Policy) -> int:
    """What to plan with beyond a share until it is learned: the estimate's upper bar, or the setting where nobody knows the model."""
    model, config = replica.wanted.model, replica.config
    if config is None or not config.known:
        return policy.overrun
    return max(0, at_share(config, model.engine, model.tensor_parallel, share).overrun.high)


def _as_it_runs(replica: Replica, machine: Machine, policy: Policy) -> Percent | None:
    """An engine that runs by the present spec keeps the share `auto` came to then: what it taught counts from its next start."""
    pod = replica.pod
    if pod is None or pod.allocation is None or not pod.is_alive or pod.allocation.node != machine.node.name:
        return None
    if pod.hash != allocated_hash(model_wish(replica.wanted.model, policy), pod.allocation):
        return None
    granted = read_utilization(pod.allocation.utilization)
    return Percent(granted.ten_thousandths) if granted else None


def per_node_share(model: Model, machine: Machine) -> Share:
    """The share as written for this node: the first perNode entry that selects it, else the model's."""
    for other in model.per_node:
        if matches(other.selector, machine.node.labels):
            return other.share
    return model.share


def within(grown: Percent | Bytes, model: Model, machine: Machine) -> Percent | Bytes:
    """The share that remedies have come to, as it may be on this machine: no less than the spec's, no more than maxShare."""
    least, most = per_node_share(model, machine), model.on_out_of_memory.max_share
    share = grown
    if most is not None and not isinstance(most, Auto):
        share = min(share, most, key=_on(machine))
    return share if isinstance(least, Auto) else max(share, least, key=_on(machine))


def _on(machine: Machine) -> Callable[[Percent | Bytes], Utilization]:
    return lambda share: share.utilization(machine.smallest)


def known(replica: Replica, product: str, utilization: str, policy: Policy) -> Learned | None:
    """What was learned of this model with these settings on this product; its KV cache only where the flag was the same.

    Remedies make an engine smaller: what it weighs and uses beyond its share as the spec says is the most it will, until it has
    served so. Its KV cache is its own.
    """
    if not replica.learned:
        return None
    model = replica.wanted.model
    key = lesson(model, model.engine, product, utilization, policy)
    if replica.engine is None:
        return recall(replica.learned, model.name, key)
    own = lesson(model, replica.engine, product, utilization, policy)
    found, full = recall(replica.learned, model.name, own), recall(replica.learned, model.name, key)
    if full is None:
        return found
    if found is None:
        return replace(full, key=own, kv_cache_tokens=None, kv_cache_bytes=None)
    overrun = full.overrun if found.overrun is None else found.overrun
    return replace(found, weights=found.weights or full.weights, overrun=overrun)


def _no_config(model: Model) -> str:
    if model.uri.startswith("hf://"):
        return f"share: auto needs the config of {model.uri}, which could not be read; write a percentage or a quantity"
    return f"share: auto needs the model's config, which is not read from {model.uri.split(':')[0]}://; write a percentage or a quantity for its first start"
