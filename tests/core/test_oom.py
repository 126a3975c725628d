"""Every death vLLM knows, by its real text inside a whole log, is told apart; nothing in a log can break the judge."""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cotenant.core.oom.deaths import DEATHS, Kind, Phase
from cotenant.core.oom.evidence import Evidence, GPUState, evidence_of
from cotenant.core.oom.judge import MAX_LOG, Blame, judge
from cotenant.core.share import GIB, MIB
from cotenant.core.snapshot import Allocation, Device, Ended, GPUNode, Pod, Snapshot, Stranger, TenantReading
from tests.core.corpus import LOGS, REFUSED, RUNS, STARTS, evidence, log

T = 139 * GIB


@pytest.mark.parametrize(("name", "kind"), [*STARTS.items(), *REFUSED.items(), *RUNS.items()])
def test_a_death_is_told_by_its_log(name: str, kind: Kind) -> None:
    verdict = judge(evidence(name))

    assert verdict.kind is kind, verdict
    assert verdict.phase is (Phase.RUN if name in RUNS else Phase.START)
    assert verdict.message


def test_every_log_of_the_corpus_is_judged() -> None:
    assert {path.stem for path in LOGS.glob("*.log")} == {*STARTS, *REFUSED, *RUNS}


def test_every_row_of_the_table_decides_some_log() -> None:
    """A row that no log reaches is dead or hidden behind an earlier one."""
    covered = {judge(evidence(name)).kind for name in {**STARTS, **REFUSED, **RUNS}}
    assert {death.kind for death in DEATHS} <= covered


def test_a_run_time_death_is_told_without_knowing_that_it_served() -> None:
    """The controller may have been away while it became ready; exit 0 and the log say enough."""
    assert judge(replace(evidence("runtime"), was_ready=False)).kind is Kind.RUNTIME_OUT_OF_MEMORY


@pytest.mark.parametrize("name", ["kv-too-small", "no-room", "bad-flag", "weights-v2-runner"])
def test_a_failed_start_is_told_even_where_it_is_thought_to_have_served(name: str) -> None:
    assert judge(replace(evidence(name), was_ready=True)).kind is judge(evidence(name)).kind


def test_the_termination_message_alone_serves_where_the_log_is_gone() -> None:
    """2,048 bytes that mostly hold only the API server's traceback: then the verdict is honest about it."""
    unread = judge(Evidence(exit_code=1, reason="Error", message=log("no-room")[-2048:]))
    told = judge(
        Evidence(exit_code=1, reason="Error", message="ValueError: No available memory for the cache blocks. Try")
    )

    assert unread.kind is Kind.UNKNOWN
    assert "Engine core initialization failed" in unread.message
    assert told.kind is Kind.NO_KV_CACHE_MEMORY


# -------------------------------------------------------------------------------------------------------- the numbers
def test_no_room_gives_what_was_free_and_what_it_wanted() -> None:
    found = judge(evidence("no-room")).numbers

    assert (found.free, found.total, found.wanted) == (int(10.37 * GIB), 1398 * GIB // 10, 2796 * GIB // 100)


def test_a_small_kv_cache_gives_what_is_needed_and_the_length_that_fits() -> None:
    for name in ("kv-too-small", "kv-too-small-wrapped-tp2"):
        found = judge(evidence(name)).numbers

        assert (found.kv_needed, found.kv_available) == (16 * GIB, 62 * GIB // 10)
        assert (found.max_model_len, found.estimated_max_model_len) == (131072, 50784)
    assert judge(evidence("kv-too-small-no-estimate")).numbers.estimated_max_model_len is None


def test_a_deficit_is_read_from_the_line_before() -> None:
    assert judge(evidence("no-kv-memory")).numbers.kv_available == -(6309 * GIB // 100)


def test_an_allocation_names_the_processes_beside() -> None:
    found = judge(evidence("weights-v2-runner")).numbers
    beside = judge(evidence("weights")).numbers

    assert (found.allocation, found.free, found.own) == (448 * MIB, 18119 * MIB // 100, 1563 * GIB // 100)
    assert beside.others == ((48211, 1184 * GIB // 10),)


def test_other_numbers() -> None:
    assert judge(evidence("profile-sampler")).numbers.sequences == 1024
    assert judge(evidence("worker-killed")).numbers.worker_exit == -9
    assert judge(evidence("shared-memory")).numbers.required == 160 * MIB
    assert judge(evidence("slow-start")).numbers.waited == 600
    disturbed = judge(evidence("profile-disturbed")).numbers
    assert (disturbed.initial_free, disturbed.current_free) == (8294 * GIB // 100, 9017 * GIB // 100)


def test_a_refused_setting_is_said_with_why() -> None:
    said = judge(Evidence(exit_code=1, reason="Error", log=log("validation"))).message
    named = "ValidationError: 2 validation errors for CacheConfig\nblock_size\n  Input should be 1 or 8 [type=literal_error]"

    assert "User-specified max_model_len (262144) is greater than" in said
    assert "type=" not in said
    assert judge(Evidence(exit_code=1, reason="Error", log=named)).message.endswith(
        ": block_size Input should be 1 or 8"
    )
    assert judge(Evidence(exit_code=1, reason="Error", log=named.split("\n")[0])).message.endswith("CacheConfig")


def test_the_cause_is_said_without_the_prefixes_of_the_log() -> None:
    verdict = judge(evidence("no-room"))

    assert verdict.line.startswith("ValueError: Free memory on device cuda:0")
    assert judge(evidence("engine-bug")).line == "AssertionError: block_table.shape[0] == num_reqs"
    assert "expected one scale" in judge(evidence("unknown")).message


# ------------------------------------------------------------------------------------------------- without a text
@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (Evidence(exit_code=0, reason="Completed"), Kind.ENGINE_DIED),
        (Evidence(exit_code=137, reason="OOMKilled", log=log("no-room")), Kind.HOST_OUT_OF_MEMORY),
        (Evidence(exit_code=1, reason="OOMKilled", was_ready=True), Kind.HOST_OUT_OF_MEMORY),
        (Evidence(exit_code=137, reason="Error"), Kind.KILLED),
        (Evidence(exit_code=137, reason="Error", timed_out=True), Kind.SLOW_START),
        (Evidence(exit_code=143, reason="Error"), Kind.SLOW_START),
        (Evidence(exit_code=143, reason="Error", was_ready=True), Kind.KILLED),
        (Evidence(exit_code=135, reason="Error"), Kind.SHARED_MEMORY),
        (Evidence(exit_code=2, reason="Error"), Kind.BAD_FLAG),
        (Evidence(exit_code=1, reason="Error"), Kind.UNKNOWN),
        (Evidence(exit_code=137, reason="Evicted", message="The node was low on resource: memory."), Kind.EVICTED),
        (Evidence(exit_code=0, reason="Completed", deleted_by_us=True), Kind.STOPPED),
    ],
)
def test_a_death_without_a_telling_text(given: Evidence, kind: Kind) -> None:
    assert judge(given).kind is kind


@pytest.mark.parametrize(
    ("reason", "words", "kind"),
    [
        ("ImagePullBackOff", 'Back-off pulling image "vllm/vllm-openai:v9"', Kind.IMAGE_MISSING),
        ("ErrImagePull", "failed to resolve reference: not found", Kind.IMAGE_MISSING),
        ("InvalidImageName", "couldn't parse image name", Kind.IMAGE_MISSING),
        ("CreateContainerConfigError", 'secret "hf-token" not found', Kind.SECRET_MISSING),
        (
            "FailedMount",
            'MountVolume.SetUp failed for volume "token" : secret "hf-token" not found',
            Kind.SECRET_MISSING,
        ),
        ("FailedMount", 'persistentvolumeclaim "models" not found', Kind.VOLUME_MISSING),
        ("Unschedulable", '0/3 nodes are available: persistentvolumeclaim "hub" not found.', Kind.VOLUME_MISSING),
        ("Unschedulable", "pod has unbound immediate PersistentVolumeClaims", Kind.VOLUME_MISSING),
        ("Unschedulable", "0/3 nodes are available: 3 node(s) had volume node affinity conflict.", Kind.UNSCHEDULABLE),
        ("Unschedulable", "0/3 nodes are available: 3 Insufficient memory.", Kind.UNSCHEDULABLE),
        (
            "CreateContainerError",
            "CDI device injection failed: unresolvable CDI devices nvidia.com/gpu=9",
            Kind.NO_DEVICE,
        ),
        ("", "", Kind.UNKNOWN),
    ],
)
def test_a_pod_that_never_ran_is_told_by_its_reason(reason: str, words: str, kind: Kind) -> None:
    verdict = judge(Evidence(blocked_reason=reason, blocked=words))

    assert verdict.kind is kind
    assert words in verdict.message


def test_a_start_that_takes_too_long_is_slow() -> None:
    assert judge(Evidence(timed_out=True)).kind is Kind.SLOW_START


# --------------------------------------------------------------------------------------------------------- who took it
def no_room(state: GPUState) -> tuple[Blame, str]:
    verdict = judge(replace(evidence("no-room"), gpus=(state,)))
    return verdict.blame, verdict.blamed


STATE = GPUState(uuid="GPU-0", usable=T, free=T // 2, promised=T // 2, share=T // 5)


def test_nobody_reads_the_gpu_nobody_is_blamed() -> None:
    assert judge(evidence("no-room")).blame is Blame.UNKNOWN


def test_who_holds_most_is_to_blame() -> None:
    stranger = replace(STATE, strangers=((4711, "python of pod other/notebook", 20 * GIB),), neighbours=(("a/b", GIB),))

    assert no_room(stranger) == (Blame.STRANGER, "pid 4711 python of pod other/notebook (20Gi)")
    assert no_room(replace(stranger, leaving=(("a/old", 60 * GIB),))) == (Blame.LEAVING, "a/old (60Gi)")
    assert no_room(replace(STATE, neighbours=(("a/b", 3 * GIB),)))[0] is Blame.NEIGHBOUR
    assert no_room(replace(STATE, starting=("a/c",))) == (Blame.STARTING, "a/c")


def test_more_promised_than_there_is_is_our_own_fault() -> None:
    assert no_room(replace(STATE, promised=T + GIB))[0] is Blame.LEDGER
    assert no_room(replace(STATE, free=GIB))[0] is Blame.LEDGER
    assert no_room(STATE)[0] is Blame.NOBODY


def test_the_blamed_are_named_in_the_message() -> None:
    state = replace(STATE, strangers=((4711, "python", 20 * GIB),))
    assert "pid 4711 python (20Gi)" in judge(replace(evidence("no-room"), gpus=(state,))).message


def test_evidence_is_read_from_the_snapshot() -> None:
    """The stranger, the neighbour over its plan, the memory of one that is gone, and a start at the same time."""
    allocation = Allocation("n0", ("GPU-0",), 28 * GIB, "0.20", overrun=3 * GIB)
    dead = Pod(
        "ns", "p-m-0", "u0", "p", "o", "m", 0, 100.0, allocation, ended=Ended(1, "Error", "", 150.0, log("no-room"))
    )
    greedy = Pod(
        "ns", "p-g-0", "u1", "p", "o", "g", 0, 10.0, allocation, ready=True, ready_since=120.0, phase="Running"
    )
    device = Device(
        "GPU-0",
        "n0",
        0,
        "NVIDIA H200",
        T,
        used=100 * GIB,
        tenants=(TenantReading("ns", "p-g-0", 40 * GIB), TenantReading("ns", "gone", 5 * GIB)),
        strangers=(Stranger(4711, "python", 20 * GIB, "other/notebook"),),
    )
    snapshot = Snapshot(200.0, gpu_nodes=(GPUNode("n0", (device,)),), pods=(dead, greedy))

    (state,) = evidence_of(snapshot, dead).gpus

    assert state.strangers == ((4711, "python of pod other/notebook", 20 * GIB),)
    assert state.neighbours == (("p-g-0", 9 * GIB),)
    assert state.leaving == (("gone", 5 * GIB),)
    assert state.starting == ("p-g-0",)
    assert (state.share, state.promised) == (28 * GIB, 56 * GIB)


# ------------------------------------------------------------------------------------------------------- hostile input
def test_colours_and_carriage_returns_hide_nothing() -> None:
    text = (
        log("kv-too-small")
        .replace("(EngineCore pid=203)", "\x1b[0;36m(EngineCore pid=203)\x1b[0;0m")
        .replace("\n", "\r\n")
    )
    verdict = judge(Evidence(exit_code=1, log=text))

    assert verdict.kind is Kind.KV_CACHE_TOO_SMALL
    assert verdict.line.startswith("ValueError: To serve")


def test_a_prompt_that_quotes_an_error_is_no_error() -> None:
    told = "INFO 11-21 05:30:01 [logger.py:39] Received request cmpl-1: prompt: 'CUDA out of memory. Tried to', params: x\n"
    assert judge(Evidence(exit_code=0, log=log("engine-bug") + told, was_ready=True)).kind is Kind.ENGINE_DIED


PROMPT = "my password is hunter2"


@pytest.mark.parametrize(
    "said",
    [
        f"INFO 11-21 10:00:05 [logger.py:42] Received request cmpl-1: prompt: '{PROMPT}', params: x\n",
        f"(APIServer pid=1) INFO 11-21 10:00:05 [logger.py:42] Received request cmpl-1: prompt: '{PROMPT}'\n" * 5,
        f"DEBUG 11-21 10:00:05 [logger.py:42] Request cmpl-1 details: prompt: '{PROMPT}', prompt_token_ids: None\n",
        f"INFO 11-21 10:00:05 [logger.py:60] Generated response cmpl-1: output: '{PROMPT}'\n",
        f"ERROR 11-21 10:00:05 [dump_input.py:79] Dumping SchedulerOutput(reqs=[NewRequestData(x='{PROMPT}')])\n",
        f"  Input should be a valid list [type=list_type, input_value='{PROMPT}', input_type=str]\n",
        f"openai.BadRequestError: bad messages [{{'role': 'user', 'content': '{PROMPT}'}}]\n",
        f"INFO 11-21 10:00:05 [api_server.py:9] non-default args: {{'api_key': ['{PROMPT}']}}\n",
    ],
)
@pytest.mark.parametrize("before", ["", "INFO:     Application startup complete.\n"])
def test_a_prompt_that_was_logged_is_in_no_verdict(said: str, before: str) -> None:
    text = f"INFO 11-21 10:00:00 [core.py:1] Available KV cache memory: 10.0 GiB\n{before}{said}"

    for given_evidence in (
        Evidence(exit_code=0, reason="Completed", log=text, was_ready=True),
        Evidence(exit_code=1, log=text),
        Evidence(exit_code=1, message=text),
    ):
        verdict = judge(given_evidence)
        assert "hunter2" not in verdict.message + verdict.line


@pytest.mark.parametrize("length", [2100, 9000])
def test_a_line_whose_beginning_was_cut_off_is_in_no_verdict(length: int) -> None:
    line = f"INFO 11-21 10:00:05 [logger.py:42] Received request cmpl-1: prompt: '{PROMPT * 1000}'\n"

    told = judge(Evidence(exit_code=1, message=line[-2048:] if length < 8000 else line[-length:]))

    assert "hunter2" not in told.message + told.line
    assert "hunter2" not in judge(Evidence(exit_code=1, log=line)).message


def test_the_last_words_are_not_how_the_server_shut_down() -> None:
    text = (
        "(EngineCore pid=203) WARNING 11-21 10:00:00 [core.py:1] the last thing of weight\n"
        "(APIServer pid=1) INFO 11-21 10:00:01 [launcher.py:1] Shutting down FastAPI HTTP server.\n"
        "INFO:     Application shutdown complete.\n"
    )
    assert judge(Evidence(exit_code=3, log=text)).message.endswith("no known text: the last thing of weight")


def test_the_cause_is_found_far_from_the_end() -> None:
    noise = "(APIServer pid=1) some more of the traceback\n" * 5000
    assert judge(Evidence(exit_code=1, log=log("no-kv-memory") + noise)).kind is Kind.NO_KV_CACHE_MEMORY


@pytest.mark.parametrize(
    "line",
    [
        "CUDA out of memory\n",
        "((((((((" * 100,
        "Free memory on device ",
        "Process 1 has 1 GiB memory in use ",
        "Error: " * 9,
    ],
)
def test_a_log_of_one_text_over_and_over_takes_no_longer(line: str) -> None:
    begun = perf_counter()

    judge(Evidence(exit_code=1, log=line * (2 * MAX_LOG // len(line))))

    assert perf_counter() - begun < 20  # about 0.1 s; a quadratic search would take minutes


TEXTS = st.one_of(
    st.text(max_size=300),
    st.sampled_from([part for death in DEATHS for parts in death.texts for part in parts]),
    st.sampled_from(
        ["Model loading took 9 GiB", "GPU KV cache size: 1", "Application startup complete.", "\x1b[31m", "\r", "\n"]
    ),
    st.sampled_from(
        ["(1/2 GiB) on startup", "9" * 400 + " GiB KV cache is needed", "\ud800", "exit code: -99)", "\x00"]
    ),
)
STATES = st.builds(
    GPUState,
    uuid=st.text(max_size=5),
    usable=st.integers(0, T),
    free=st.integers(0, T),
    promised=st.integers(0, 2 * T),
    share=st.integers(0, T),
    strangers=st.lists(st.tuples(st.integers(), st.text(max_size=9), st.integers(0, T)), max_size=3).map(tuple),
    neighbours=st.lists(st.tuples(st.text(max_size=9), st.integers(0, T)), max_size=3).map(tuple),
    leaving=st.lists(st.tuples(st.text(max_size=9), st.integers(0, T)), max_size=3).map(tuple),
    starting=st.lists(st.text(max_size=9), max_size=2).map(tuple),
)
EVIDENCE = st.builds(
    Evidence,
    exit_code=st.none() | st.integers(-300, 300),
    reason=st.sampled_from(["", "Error", "Completed", "OOMKilled", "Evicted"]) | st.text(max_size=9),
    message=TEXTS,
    log=st.none() | st.lists(TEXTS, max_size=12).map("".join) | st.lists(TEXTS, max_size=12).map("\n".join),
    was_ready=st.booleans(),
    deleted_by_us=st.booleans(),
    blocked_reason=st.sampled_from(["", "ImagePullBackOff", "FailedMount"]) | st.text(max_size=9),
    blocked=TEXTS,
    timed_out=st.booleans(),
    gpus=st.lists(STATES, max_size=3).map(tuple),
    memory=st.none() | st.integers(0, T),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(EVIDENCE)
def test_whatever_is_in_a_log_gives_one_verdict(given_evidence: Evidence) -> None:
    first, second = judge(given_evidence), judge(given_evidence)

    assert first == second
    assert first.message
    assert len(first.message) < 3000
    first.message.encode("utf-8")


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(EVIDENCE)
def test_the_order_of_the_gpus_does_not_matter(given_evidence: Evidence) -> None:
    turned = replace(given_evidence, gpus=given_evidence.gpus[::-1])
    assert judge(turned) == judge(given_evidence)


def test_the_documented_table_is_the_codes_own() -> None:
    """If this fails: uv run python tests/core/write_fault_table.py"""
    from tests.core.write_fault_table import BEGIN, END, PAGE, fault_table

    page = PAGE.read_text(encoding="utf-8")

    assert page.split(BEGIN)[1].split(END)[0] == f"\n{fault_table()}"
    assert all(f"`{kind}`" in page for kind in Kind if kind is not Kind.STOPPED)


def test_who_is_to_blame_is_named_in_its_own_namespace_only() -> None:
    allocation = Allocation("n0", ("GPU-0",), 28 * GIB, "0.20")
    dead = Pod("ns", "p-m-0", "u0", "p", "o", "m", 0, 100.0, allocation, ended=Ended(1, "Error", "", 150.0, ""))
    greedy = Pod("other", "secret-0", "u1", "p", "o", "g", 0, 10.0, allocation, ready=True, ready_since=120.0)
    readings = (TenantReading("other", "secret-0", 40 * GIB), TenantReading("other", "secret-1", 5 * GIB))
    stranger = Stranger(4711, "python", 20 * GIB, "other/notebook")
    device = Device("GPU-0", "n0", 0, "NVIDIA H200", T, used=65 * GIB, tenants=readings, strangers=(stranger,))

    (state,) = evidence_of(Snapshot(200.0, gpu_nodes=(GPUNode("n0", (device,)),), pods=(dead, greedy)), dead).gpus

    named = {state.neighbours[0][0], state.leaving[0][0], *state.starting}
    assert named == {"a replica of another namespace"}
    assert state.strangers[0][1] == "python of pod other/notebook", "who is not ours is named, wherever it is"
