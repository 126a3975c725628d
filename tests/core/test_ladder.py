"""Remedies climb a ladder that ends: within what the spec allows, slower each time, and kept where a restart finds them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cotenant.core.demand import Wanted
from cotenant.core.oom.deaths import Kind
from cotenant.core.oom.facts import Facts, facts_of
from cotenant.core.oom.figures import Numbers
from cotenant.core.oom.judge import Blame, Verdict, is_about_memory
from cotenant.core.oom.ladder import (
    HEALED_AFTER,
    HOUR,
    LADDERS,
    LONGEST_DELAY,
    Step,
    delay,
    heal,
    held_until,
    next_step,
)
from cotenant.core.oom.remedies import PERMISSION, Overrides, Rung, Setting, apply, overrides
from cotenant.core.oom.wish import wish_of
from cotenant.core.share import GIB, MIB, Bytes, Percent
from cotenant.core.snapshot import (
    Allocation,
    Device,
    Ended,
    Fault,
    GPUNode,
    Model,
    Node,
    NodeShare,
    OnOutOfMemory,
    Placement,
    Pod,
    Policy,
    Remedy,
    Snapshot,
)
from cotenant.core.vllm import Engine

T = 140 * GIB
ALL = tuple(Remedy)
NOW = 1_000_000.0
MODEL = Model(
    "chat",
    "hf://org/chat@1",
    Percent(2000),
    engine=Engine(max_model_len=32768),
    on_out_of_memory=OnOutOfMemory(Percent(6000), 8, ALL),
)
FACTS = Facts("ns/p/chat/0", 0, 1, ("GPU-0",), T, 2000, 3 * GIB, room=30 * GIB, kv_bytes=8 * GIB, host_memory=8 * GIB)
PLACEMENT = Placement("ns", "p", "o", 1, 0.0, (MODEL,))
WISH = wish_of(PLACEMENT, MODEL, Policy())
TOO_SMALL = Verdict(
    Kind.KV_CACHE_TOO_SMALL,
    "too small",
    numbers=Numbers(kv_needed=4 * GIB, kv_available=2 * GIB, max_model_len=32768, estimated_max_model_len=16384),
)


def allowing(*allow: Remedy, attempts: int = 8, most: int | None = 6000) -> Model:
    return replace(MODEL, on_out_of_memory=OnOutOfMemory(Percent(most) if most else None, attempts, allow))


def climb(verdict: Verdict, model: Model = MODEL, facts: Facts = FACTS, gap: float = 400.0) -> list[Step]:
    """The same death again and again, until it is given up or two hours went by."""
    steps: list[Step] = []
    fault, now = None, NOW
    while now < NOW + 2 * HOUR and (fault is None or not fault.failed):
        steps.append(next_step(fault, verdict, model, facts, now))
        fault = steps[-1].fault
        assert fault is not None
        now = max(now + gap, fault.retry_at)
    return steps


def rungs(steps: list[Step]) -> list[Rung]:
    return [rung for step in steps for rung in step.rungs]


# --------------------------------------------------------------------------------------------------------- the rungs
def test_too_small_a_cache_shortens_the_context_to_what_fits() -> None:
    step = next_step(None, TOO_SMALL, MODEL, FACTS, NOW)

    assert step.rungs == (Rung.REDUCE_CONTEXT,)
    assert step.changes.max_model_len == 16048  # 98 % of vLLM's estimate, in whole blocks
    assert step.fault is not None
    assert step.fault.remedies == ("ReduceContext",)
    assert apply(MODEL.engine, step.changes).max_model_len == 16048


def test_where_the_context_may_not_shrink_the_share_grows_by_what_is_missing() -> None:
    step = next_step(None, TOO_SMALL, allowing(Remedy.GROW_SHARE), FACTS, NOW)

    assert step.rungs == (Rung.GROW_SHARE,)
    assert isinstance(step.changes.share, Bytes)
    assert 28 * GIB + 2 * GIB < step.changes.share.bytes < 28 * GIB + 3 * GIB


def test_a_share_grows_neither_above_max_share_nor_without_one() -> None:
    assert next_step(None, TOO_SMALL, allowing(Remedy.GROW_SHARE, most=2100), FACTS, NOW).rungs == ()
    given_up = next_step(None, TOO_SMALL, allowing(Remedy.GROW_SHARE, most=None), FACTS, NOW)

    assert given_up.fault is not None
    assert given_up.fault.failed
    assert "GrowShare needs onOutOfMemory.maxShare" in given_up.message


def test_a_share_that_cannot_grow_here_grows_elsewhere() -> None:
    full = replace(FACTS, room=GIB, elsewhere=60 * GIB)
    step = next_step(None, TOO_SMALL, allowing(Remedy.GROW_SHARE, Remedy.MOVE), full, NOW)

    assert step.rungs == (Rung.GROW_SHARE, Rung.MOVE)
    assert step.changes.avoid == ("GPU-0",)


def test_a_lower_priority_tenant_yields_where_nothing_else_has_room() -> None:
    full = replace(FACTS, room=GIB, yielding=20 * GIB)
    step = next_step(None, TOO_SMALL, allowing(Remedy.GROW_SHARE, Remedy.MOVE), full, NOW)

    assert step.rungs == (Rung.GROW_SHARE, Rung.YIELD)
    assert step.changes.yielding is not None
    assert 0 < step.changes.yielding <= 20 * GIB


def test_who_is_yielded_to_asks_for_more_than_the_ledger_has_and_waits_until_it_is_free() -> None:
    full = replace(FACTS, spare=10 * GIB, yielding=20 * GIB)
    step = next_step(None, Verdict(Kind.WEIGHTS_DO_NOT_FIT, "weights"), allowing(Remedy.MOVE), full, NOW)

    assert step.rungs == (Rung.YIELD,)
    assert (step.changes.yielding, step.changes.reserve) == (GIB, 11 * GIB)
    assert step.changes.wait_for_free == 28 * GIB + 3 * GIB


def test_who_moves_away_makes_nobody_yield() -> None:
    death, model = Verdict(Kind.WEIGHTS_DO_NOT_FIT, "weights"), allowing(Remedy.MOVE)
    yielded = next_step(None, death, model, replace(FACTS, spare=10 * GIB, yielding=20 * GIB), NOW).fault
    step = next_step(yielded, death, model, replace(FACTS, elsewhere=60 * GIB), NOW + 60)

    assert step.rungs == (Rung.MOVE,)
    assert step.changes == Overrides(avoid=("GPU-0",))


def test_a_start_that_was_not_alone_starts_again_alone_first() -> None:
    race = replace(TOO_SMALL, blame=Blame.STARTING)

    assert next_step(None, race, MODEL, FACTS, NOW).rungs == (Rung.RESTART,)


def test_a_run_time_death_never_grows_the_share() -> None:
    death = Verdict(Kind.RUNTIME_OUT_OF_MEMORY, "oom", numbers=Numbers(allocation=GIB, free=100 * MIB))
    steps = climb(death, facts=replace(FACTS, elsewhere=60 * GIB))

    assert rungs(steps)[:3] == [Rung.LOWER_KV_CACHE, Rung.REDUCE_BATCH, Rung.MOVE]
    assert all(step.changes.share is None for step in steps)
    assert steps[0].changes.kv_cache_bytes == 8 * GIB * 37 // 40 // (2 * MIB) * (2 * MIB)


def test_a_greedy_neighbour_is_blamed_before_anything_shrinks() -> None:
    death = Verdict(Kind.RUNTIME_OUT_OF_MEMORY, "oom", blame=Blame.NEIGHBOUR, blamed="a/b")
    step = next_step(None, death, MODEL, FACTS, NOW)

    assert step.rungs == (Rung.RESTART,)
    assert step.changes == Overrides(wait_for_free=28 * GIB + 3 * GIB)


def test_who_others_starve_moves_away_before_it_shrinks() -> None:
    death = Verdict(Kind.RUNTIME_OUT_OF_MEMORY, "oom", blame=Blame.NEIGHBOUR, blamed="a/b")

    assert rungs(climb(death, facts=replace(FACTS, elsewhere=60 * GIB)))[:3] == [
        Rung.RESTART,
        Rung.MOVE,
        Rung.LOWER_KV_CACHE,
    ]


def test_no_room_waits_for_the_memory_and_is_never_given_up() -> None:
    full = Verdict(
        Kind.NO_ROOM_AT_START, "no room", blame=Blame.STRANGER, numbers=Numbers(free=10 * GIB, wanted=28 * GIB)
    )
    steps = climb(full, allowing(attempts=2))

    assert set(rungs(steps)) == {Rung.RESTART}
    assert all(step.fault is not None and not step.fault.failed for step in steps)
    assert all((step.changes.wait_for_free or 0) > 28 * GIB for step in steps)
    assert len(steps) <= 2 * 2 + 2  # at most maxAttempts an hour


def test_no_room_moves_where_it_may() -> None:
    full = Verdict(Kind.NO_ROOM_AT_START, "no room", blame=Blame.STRANGER)
    assert next_step(None, full, MODEL, replace(FACTS, elsewhere=40 * GIB), NOW).rungs == (Rung.MOVE,)
    assert next_step(None, full, MODEL, replace(FACTS, elsewhere=20 * GIB), NOW).rungs == (Rung.RESTART,)


def test_a_disturbed_profile_is_made_immune_the_second_time() -> None:
    steps = climb(Verdict(Kind.PROFILE_DISTURBED, "disturbed"))

    assert rungs(steps)[:2] == [Rung.RESTART, Rung.PIN_KV_CACHE]
    assert steps[1].changes.kv_cache_bytes == 8 * GIB


def test_capture_gets_smaller_then_the_cache_then_no_graphs() -> None:
    death = Verdict(Kind.GRAPH_CAPTURE_OUT_OF_MEMORY, "capture", numbers=Numbers(allocation=150 * MIB, free=96 * MIB))

    assert rungs(climb(death)) == [Rung.REDUCE_GRAPHS, Rung.LOWER_KV_CACHE, Rung.EAGER]


def test_profiling_runs_smaller_batches() -> None:
    death = Verdict(Kind.PROFILE_OUT_OF_MEMORY, "profile", numbers=Numbers(sequences=1024))
    step = next_step(None, death, MODEL, FACTS, NOW)

    assert step.rungs == (Rung.REDUCE_BATCH,)
    assert (step.changes.max_num_seqs, step.changes.max_num_batched_tokens) == (512, 2048)


def test_host_memory_grows_only_where_the_user_wrote_none() -> None:
    death = Verdict(Kind.HOST_OUT_OF_MEMORY, "host")

    assert next_step(None, death, MODEL, FACTS, NOW).changes.host_memory == 12 * GIB
    assert next_step(None, death, replace(MODEL, memory=8 * GIB), FACTS, NOW).rungs == (Rung.RESTART,)


def test_shared_memory_and_time_are_the_operators_own_to_give() -> None:
    small = Verdict(Kind.SHARED_MEMORY, "shm", numbers=Numbers(required=6 * GIB))
    slow = Verdict(Kind.SLOW_START, "slow")

    assert next_step(None, small, allowing(), FACTS, NOW).changes.shared_memory == 12 * GIB
    assert next_step(None, slow, allowing(), FACTS, NOW).changes.start_timeout == 3600


def test_a_bad_flag_is_given_up_at_once_with_what_to_do() -> None:
    step = next_step(None, Verdict(Kind.BAD_FLAG, "unrecognized arguments: --swap-space"), MODEL, FACTS, NOW)

    assert step.fault is not None
    assert step.fault.failed
    assert "correct extraArgs" in step.message
    assert "--swap-space" in step.message


def test_a_missing_secret_is_tried_again_for_ever_but_seldom() -> None:
    steps = climb(Verdict(Kind.SECRET_MISSING, "secret not found"), allowing(attempts=3))

    assert all(step.fault is not None and not step.fault.failed for step in steps)
    assert len(steps) <= 3 * 2 + 3


def test_a_dying_engine_is_started_again_until_the_attempts_are_spent() -> None:
    steps = climb(Verdict(Kind.ENGINE_DIED, "died"), allowing(attempts=3))

    assert rungs(steps) == [Rung.RESTART, Rung.RESTART]
    assert "given up after 3 failures within an hour" in steps[-1].message


def test_what_the_spec_did_not_allow_is_named_when_it_is_given_up() -> None:
    step = next_step(None, TOO_SMALL, allowing(), FACTS, NOW)

    assert step.fault is not None
    assert step.fault.failed
    assert "allow GrowShare, ReduceBatch, ReduceContext in onOutOfMemory" in step.message


# ------------------------------------------------------------------------------------------------------ time and state
def test_a_fault_of_an_older_version_of_the_operator_is_of_its_generation() -> None:
    fault = climb(TOO_SMALL)[-1].fault
    step = next_step(fault, TOO_SMALL, MODEL, replace(FACTS, generation=2, wish=WISH), NOW + 60)

    assert step.fault is not None
    assert (step.fault.attempt, step.rungs) == (1, (Rung.REDUCE_CONTEXT,))


def test_a_fault_of_an_older_version_of_the_operator_is_of_the_wish_of_its_generation() -> None:
    fault = next_step(None, TOO_SMALL, MODEL, FACTS, NOW).fault
    named = heal(fault, WISH, 1, None, NOW)

    assert fault is not None
    assert named == replace(fault, wish=WISH)
    assert heal(named, WISH, 2, None, NOW) == named


def test_another_wish_for_the_model_starts_afresh() -> None:
    fault = next_step(None, TOO_SMALL, MODEL, replace(FACTS, wish=WISH), NOW).fault
    assert fault is not None
    assert fault.wish == WISH
    ground = {
        "share": replace(MODEL, share=Percent(2100)),
        "perNode": replace(MODEL, per_node=(NodeShare((("a", "b"),), Percent(2000)),)),
        "onOutOfMemory": allowing(attempts=9),
        "engine": replace(MODEL, engine=Engine(max_model_len=4096)),
        "memory": replace(MODEL, memory=GIB),
        "tensorParallelSize": replace(MODEL, tensor_parallel=2),
    }
    others = {name: wish_of(PLACEMENT, other, Policy()) for name, other in ground.items()}
    others["headroom"] = wish_of(replace(PLACEMENT, headroom=100), MODEL, Policy())

    for name, other in others.items():
        assert heal(fault, other, 1, None, NOW) is None, name
        step = next_step(fault, TOO_SMALL, MODEL, replace(FACTS, wish=other), NOW + 60)
        assert (step.fault and step.fault.attempt, step.rungs) == (1, (Rung.REDUCE_CONTEXT,)), name


def test_more_replicas_another_priority_and_other_models_are_no_other_wish() -> None:
    scaled = replace(MODEL, replicas=7, priority=9)

    assert (
        wish_of(replace(PLACEMENT, generation=9, models=(scaled, replace(MODEL, name="x"))), scaled, Policy()) == WISH
    )


def test_other_nodes_give_what_was_given_up_another_try_and_undo_no_remedy() -> None:
    there = wish_of(replace(PLACEMENT, names=("n2",)), MODEL, Policy())
    fault = next_step(None, TOO_SMALL, MODEL, replace(FACTS, wish=WISH), NOW).fault
    assert fault is not None

    assert heal(fault, there, 2, None, NOW) == fault
    assert heal(replace(fault, failed=True), there, 2, None, NOW) is None
    assert heal(replace(fault, failed=True), WISH, 2, None, NOW) is not None


def test_a_share_as_once_written_in_ten_thousandths_is_read() -> None:
    fault = Fault("chat", 0, 1, "x", "x", 1, settings=(("share", "4262"),))

    assert overrides(fault).share == Percent(4262)


def test_failures_of_more_than_an_hour_ago_do_not_count() -> None:
    died, model = Verdict(Kind.ENGINE_DIED, "died"), allowing(attempts=2)
    fault = next_step(None, died, model, FACTS, NOW).fault

    late = next_step(fault, died, model, FACTS, NOW + HOUR + 1).fault
    soon = next_step(fault, died, model, FACTS, NOW + HOUR - 1).fault

    assert late is not None
    assert soon is not None
    assert (late.failed, soon.failed) == (False, True)


def test_serving_for_ten_minutes_forgets_the_ladder_and_keeps_what_made_it_serve() -> None:
    fault = next_step(None, TOO_SMALL, MODEL, FACTS, NOW).fault

    assert heal(fault, "", 1, NOW, NOW + HEALED_AFTER - 1) == fault
    healed = heal(fault, "", 1, NOW, NOW + HEALED_AFTER)
    assert healed is not None
    assert (healed.attempt, healed.remedies, healed.times) == (0, (), ())
    assert overrides(healed) == overrides(fault)
    assert heal(healed, "", 1, NOW, NOW + 9999) == healed
    assert heal(healed, "", 2, NOW, NOW + 9999) is None


def test_a_fault_that_changed_nothing_heals_to_nothing() -> None:
    fault = next_step(None, Verdict(Kind.ENGINE_DIED, "died"), MODEL, FACTS, NOW).fault
    assert heal(fault, "", 1, NOW, NOW + HEALED_AFTER) is None


def test_a_clock_that_jumped_back_makes_nobody_wait_for_ever() -> None:
    fault = next_step(None, Verdict(Kind.ENGINE_DIED, "died"), MODEL, FACTS, NOW).fault
    assert fault is not None

    assert held_until(fault, NOW) == fault.retry_at
    assert held_until(fault, NOW - 86_400) == 0.0


def test_a_status_edited_by_hand_breaks_nothing() -> None:
    fault = Fault(
        "chat", 0, 1, "x", "x", 1, settings=(("share", "lots"), ("eager", "1"), ("maxModelLen", "-4"), ("?", ""))
    )
    assert overrides(fault) == Overrides()


def test_facts_are_read_from_the_snapshot() -> None:
    allocation = Allocation("n0", ("G0",), 28 * GIB, "0.2", overrun=3 * GIB)
    low = Model("low", "hf://a/b", Percent(1000), priority=-5)
    placement = Placement("ns", "p", "o", 4, 0.0, (MODEL, low), headroom=1000)
    dead = Pod("ns", "p-chat-0", "u0", "p", "o", "chat", 0, 1.0, allocation, ended=Ended(1, "Error", "", 2.0))
    other = Pod("ns", "p-low-0", "u1", "p", "o", "low", 0, 1.0, Allocation("n0", ("G0",), 14 * GIB, "0.1"), ready=True)
    devices = (Device("G0", "n0", 0, "H200", T), Device("G1", "n0", 1, "H200", T))
    snapshot = Snapshot(
        NOW,
        Policy(managed_label=("", "")),
        (placement,),
        (Node("n0"),),
        (GPUNode("n0", devices),),
        (dead, other),
    )

    facts = facts_of(snapshot, Wanted(placement, MODEL, 0), 0, dead)

    assert (facts.key, facts.generation, facts.utilization, facts.usable) == ("ns/p/chat/0", 4, 2000, T)
    assert facts.room == T - T // 10 - 14 * GIB - 28 * GIB
    assert facts.spare == T - 14 * GIB - 28 * GIB - 3 * GIB
    assert facts.elsewhere == T - T // 10
    assert facts.yielding == 14 * GIB


# ------------------------------------------------------------------------------------------------------------ properties
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""Machines differ; what is tested does not."""
SIZES = st.integers(0, T)
VERDICTS = st.builds(
    Verdict,
    kind=st.sampled_from(list(LADDERS)),
    message=st.text(max_size=20),
    blame=st.sampled_from(Blame),
    numbers=st.builds(
        Numbers,
        free=st.none() | SIZES,
        wanted=st.none() | SIZES,
        allocation=st.none() | SIZES,
        kv_needed=st.none() | SIZES,
        kv_available=st.none() | st.integers(-T, T),
        max_model_len=st.none() | st.integers(0, 10**6),
        estimated_max_model_len=st.none() | st.integers(0, 10**6),
        sequences=st.none() | st.integers(0, 4096),
        required=st.none() | SIZES,
    ),
)
FACTS_OF_ANY = st.builds(
    Facts,
    key=st.text(max_size=9),
    index=st.integers(0, 3),
    generation=st.integers(1, 2),
    gpus=st.lists(st.sampled_from(["G0", "G1", "G2"]), unique=True, max_size=2).map(tuple),
    usable=SIZES,
    utilization=st.integers(0, 10_000),
    overrun=st.integers(0, 5 * GIB),
    room=SIZES,
    elsewhere=SIZES,
    yielding=SIZES,
    kv_bytes=st.none() | SIZES,
    host_memory=st.none() | SIZES,
)
MODELS = st.builds(
    allowing,
    attempts=st.integers(1, 12),
    most=st.none() | st.integers(1, 10_000),
).flatmap(
    lambda model: st.lists(st.sampled_from(Remedy), unique=True).map(
        lambda allow: replace(model, on_out_of_memory=replace(model.on_out_of_memory, allow=tuple(allow)))
    )
)


@PATIENT
@given(st.lists(st.tuples(VERDICTS, st.floats(0, 900)), min_size=1, max_size=16), FACTS_OF_ANY, MODELS)
def test_the_ladder_ends_and_keeps_its_promises(
    deaths: list[tuple[Verdict, float]], facts: Facts, model: Model
) -> None:
    fault: Fault | None = None
    now, seen, starts = NOW, [], []
    for verdict, gap in deaths:
        step = next_step(fault, verdict, model, facts, now)
        again = next_step(fault, verdict, model, facts, now)
        assert step == again, "not deterministic"
        old, fault = fault, step.fault
        assert fault is not None
        for rung in step.rungs:
            # no rung twice, and only what the spec allows; starting again is no rung
            assert rung is Rung.RESTART or rung not in seen
            assert rung not in PERMISSION or PERMISSION[rung] in model.on_out_of_memory.allow
        seen.extend(step.rungs)
        if step.changes.share is not None and step.changes.share != overrides(old).share:
            assert isinstance(step.changes.share, Bytes)
            assert facts.share < step.changes.share.bytes <= facts.usable * _limit(model) // 10_000
        if is_about_memory(verdict) and step.rungs == (Rung.RESTART,):
            assert (step.changes.wait_for_free or 0) > 0, "the same start on the same full GPU"
        assert bool(step.rungs) != fault.failed
        assert fault.retry_at > now
        starts.append(now)
        if fault.failed:
            break
        now = max(now + gap, fault.retry_at)
    # never more starts in an hour than the spec allows, whatever the gaps
    limit = model.on_out_of_memory.max_attempts
    for at, first in enumerate(starts[:-limit]):
        assert starts[at + limit] - first >= HOUR * 0.999


def _limit(model: Model) -> int:
    limit = model.on_out_of_memory.max_share
    return limit.ten_thousandths if isinstance(limit, Percent) else 0


@PATIENT
@given(VERDICTS, FACTS_OF_ANY, MODELS)
def test_what_a_step_decided_is_read_back_from_the_status(verdict: Verdict, facts: Facts, model: Model) -> None:
    fault = next_step(None, verdict, model, facts, NOW)

    assert fault.fault is not None
    assert overrides(fault.fault) == fault.changes
    assert {name for name, _ in fault.fault.settings} <= {str(name) for name in Setting}
    assert overrides(replace(fault.fault, settings=fault.fault.settings[::-1])) == fault.changes


@PATIENT
@given(st.text(), st.integers(1, 100))
def test_the_back_off_grows_to_its_end(key: str, attempt: int) -> None:
    assert delay(key, attempt) <= delay(key, attempt + 1) <= LONGEST_DELAY * 1.1
    assert delay(key, 1) >= 10


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind is not Kind.STOPPED])
def test_every_verdict_has_a_ladder_and_advice(kind: Kind) -> None:
    assert LADDERS[kind].advice


def test_what_we_stopped_ourselves_is_no_fault() -> None:
    assert next_step(None, Verdict(Kind.STOPPED, "deleted"), MODEL, FACTS, NOW).fault is None
