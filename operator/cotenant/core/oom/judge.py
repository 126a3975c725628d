"""Which memory ran out, or what else went wrong: one verdict of a closed set, from all there is to see.

The container's status decides little (a run-time death ends with exit 0, a failed start with exit 1 whatever the
cause), so the log does: `DEATHS` in its order, first match wins. Then the readings of its GPUs say who is to blame.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum

from cotenant.core.oom.deaths import DEATHS, Death, Kind, Phase, Progress, began, progress, served
from cotenant.core.oom.evidence import Evidence, GPUState
from cotenant.core.oom.figures import Numbers, numbers
from cotenant.core.share import MIB, gib

MAX_LOG = 512 * 1024
"""Characters from the end of a log that are looked at: a start prints some 100 KiB, a traceback 20 KiB a rank."""
MAX_LINE = 4000
MAX_LINES = 200
"""Lines that say the same which are looked at: a log may hold nothing else."""
LAST_WORDS = 8000
"""Characters from the end of a log among which its last words are looked for."""
CUT = 2000
"""Bytes from which on a termination message is the end of a log (the kubelet's 2,048) whose first line may be cut."""
NOISE = 256 * MIB
"""Below this nobody is blamed: readings move so much by themselves."""


class Blame(StrEnum):
    """Who took the memory that was missing."""

    NOBODY = "Nobody"
    """Nobody but the engine itself."""
    STRANGER = "Stranger"
    NEIGHBOUR = "Neighbour"
    """A tenant of ours that uses more than its share and overrun."""
    LEAVING = "Leaving"
    """A tenant of ours that ended and whose memory was not yet given back."""
    STARTING = "Starting"
    """Another start or end on the same GPU at the same time."""
    LEDGER = "OurLedger"
    """We promised more than there is."""
    UNKNOWN = "Unknown"
    """Nothing was read of its GPUs."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What went wrong."""

    kind: Kind
    message: str
    """For people: what happened, with the numbers and names."""
    line: str = ""
    """The log line it rests on, without prefixes."""
    phase: Phase = Phase.START
    blame: Blame = Blame.NOBODY
    blamed: str = ""
    numbers: Numbers = field(default_factory=Numbers)


BLOCKED: dict[str, Kind] = {
    "ImagePullBackOff": Kind.IMAGE_MISSING,
    "ErrImagePull": Kind.IMAGE_MISSING,
    "ErrImageNeverPull": Kind.IMAGE_MISSING,
    "InvalidImageName": Kind.IMAGE_MISSING,
    "RegistryUnavailable": Kind.IMAGE_MISSING,
    "ImageInspectError": Kind.IMAGE_MISSING,
    "CreateContainerConfigError": Kind.SECRET_MISSING,
    "FailedMount": Kind.VOLUME_MISSING,
    "FailedAttachVolume": Kind.VOLUME_MISSING,
    "Unschedulable": Kind.UNSCHEDULABLE,
    "SchedulingGated": Kind.UNSCHEDULABLE,
    "Evicted": Kind.EVICTED,
    "Preempting": Kind.EVICTED,
    "NodeShutdown": Kind.EVICTED,
    "Terminated": Kind.EVICTED,
    "NodeLost": Kind.EVICTED,
    "UnexpectedAdmissionError": Kind.NO_DEVICE,
}
_DEVICE_REFUSED = ("CDI device", "nvidia-container", "libnvidia", "nvidia-smi", "runtime handler", "unhealthy devices")
_EXHAUSTED = frozenset(
    {
        Kind.NO_ROOM_AT_START, Kind.NO_KV_CACHE_MEMORY, Kind.KV_CACHE_TOO_SMALL, Kind.WEIGHTS_DO_NOT_FIT,
        Kind.PROFILE_OUT_OF_MEMORY, Kind.PROFILE_DISTURBED, Kind.KV_CACHE_OUT_OF_MEMORY,
        Kind.GRAPH_CAPTURE_OUT_OF_MEMORY, Kind.RUNTIME_OUT_OF_MEMORY,
    }
)  # fmt: skip
"""Verdicts about GPU memory: those for which somebody may be to blame."""


def judge(evidence: Evidence) -> Verdict:
    """The verdict. Never raises, and the same evidence gives the same verdict."""
    if evidence.deleted_by_us:
        return Verdict(Kind.STOPPED, "deleted by Cotenant")
    log = clean(f"{evidence.log or ''}\n{_whole_lines(evidence.message)}")
    ran = served(log) or ((evidence.was_ready or evidence.exit_code == 0) and not began(log))
    phase = Phase.RUN if ran else Phase.START
    if evidence.reason == "OOMKilled":
        memory = f" of {gib(evidence.memory)}" if evidence.memory else ""
        return Verdict(
            Kind.HOST_OUT_OF_MEMORY, f"the container reached its host memory limit{memory} and was killed", phase=phase
        )
    if evidence.exit_code is None or evidence.reason in BLOCKED:
        return _never_ran(evidence)
    reached = progress(log)
    # the kubelet does not say for certain whether it ever served: what this phase has no text for, the other may
    for rows in (
        [death for death in DEATHS if phase in death.phases],
        [death for death in DEATHS if phase not in death.phases],
    ):
        for death in rows:
            if (at := _find(death, log, reached)) is not None:
                return _found(death, log, at, death.phases[0] if phase not in death.phases else phase, evidence)
    return _without_text(evidence, log, phase)


def is_about_memory(verdict: Verdict) -> bool:
    """Whether GPU memory ran out: the same start on an equally full GPU would end the same way."""
    return verdict.kind in _EXHAUSTED


# ------------------------------------------------------------------------------------------------------------ the log
_ANSI = re.compile(r"\x1b\[[0-9;?]{0,32}[A-Za-z]")
_CONTROL = {code: None for code in range(32) if code not in (9, 10)} | {127: None}
_PREFIX = re.compile(
    r"(?:\([A-Za-z0-9_ =.:-]{1,80}\) ?){0,3}"
    r"(?:(?:CRITICAL|ERROR|WARNING|INFO|DEBUG) [0-9-]{5,10} [0-9:.,]{8,15} \[[^\]\n]{1,120}\] ?)?"
)
_INFO = re.compile(r"(?:\([A-Za-z0-9_ =.:-]{1,80}\) ?){0,3}(?:INFO|DEBUG)[ :]")
_PRIVATE = (
    "Received request", "Generated response", "Added request", "details: prompt:", "prompt_token_ids", "SchedulerOutput(",
    "non-default args", "'role':", '"role":',
)  # fmt: skip
"""What marks a line of vLLM's request log, of its dump of a failed step, and the one of all it was started with."""
_ERROR = re.compile(r"(?:[A-Za-z_][A-Za-z0-9_.]{0,80})?(?:Error|Exception|Interrupt|Exit): ?\S")
_WRAPPERS = ("EngineDeadError", "Engine core initialization failed", "EngineCore encountered an issue", "leaked ")


def clean(text: str) -> str:
    """The end of a log as plain lines: no colours, no control characters, no carriage returns."""
    tail = text[-MAX_LOG:].replace("\r\n", "\n").replace("\r", "\n")
    return _ANSI.sub("", tail).translate(_CONTROL).encode("utf-8", "replace").decode("utf-8")


def _whole_lines(message: str) -> str:
    """A termination message without the line at its beginning that the kubelet may have cut."""
    return message.partition("\n")[2] if len(message.encode("utf-8", "replace")) >= CUT else message


def _line(log: str, at: int) -> tuple[int, str]:
    start = log.rfind("\n", 0, at) + 1
    end = log.find("\n", at)
    return start, log[start : len(log) if end < 0 else end]


def _find(death: Death, log: str, reached: Progress) -> int | None:
    """Where the first line stands that says it; a prompt that was logged says nothing."""
    found: list[int] = []
    for parts in death.texts:
        at = log.find(parts[0])
        for _ in range(MAX_LINES):
            if at < 0:
                break
            start, line = _line(log, at)
            if (
                all(part in line for part in parts)
                and not _tells_of_requests(line)
                and _fits(death, log, start, reached)
            ):
                found.append(at)
                break
            at = log.find(parts[0], start + len(line))
    return min(found, default=None)


def _fits(death: Death, log: str, start: int, reached: Progress) -> bool:
    if death.stage is not None and reached.at(start) is not death.stage:
        return False
    above = log[max(0, start - 8000) : start]
    return not death.near or any(name in above for name in death.near)


def _found(death: Death, log: str, at: int, phase: Phase, evidence: Evidence) -> Verdict:
    start, line = _line(log, at)
    window = line if len(line) <= MAX_LINE else line[max(0, at - start - 200) :][:MAX_LINE]
    figures = numbers(window, log[:start])
    if death.kind is Kind.ENGINE_DIED:
        return _died(log, phase)
    text = _text(window)
    if "validation error" in text:
        text = f"{text}: {_refused(log[start + len(line) :])}".rstrip(": ")
    blame, blamed = _blame(figures, evidence) if death.kind in _EXHAUSTED else (Blame.NOBODY, "")
    return Verdict(death.kind, _say(text, blame, blamed), text, phase, blame, blamed, figures)


def _text(line: str) -> str:
    stripped = _PREFIX.sub("", line, count=1).strip()
    return stripped if len(stripped) <= 700 else stripped[:699] + "…"


def _refused(below: str) -> str:
    """What pydantic says under its heading: the setting, where it names one, and why it was refused."""
    said = []
    for line in below.lstrip("\n").split("\n", 3)[:3]:
        words, is_reason, _ = _text(line).partition(" [type=")
        said.append(words)
        if is_reason:
            break
    return " ".join(said)


def _root_cause(log: str) -> str:
    """The last line of a traceback that is not a wrapper's."""
    for line in reversed(log.split("\n")):
        text = _PREFIX.sub("", line[:MAX_LINE], count=1).strip()
        if _ERROR.match(text) and not any(word in text for word in (*_WRAPPERS, *_PRIVATE)):
            return _text(text)
    return ""


def _last_words(log: str) -> str:
    """The last three lines worth telling; of one whose beginning is cut off nobody knows what it is."""
    whole = log if len(log) <= LAST_WORDS else log[-LAST_WORDS:].partition("\n")[2]
    lines = [line for line in whole.split("\n") if _text(line) and not _tells_of_requests(line)]
    # how a server shuts down says nothing of why
    lines = [line for line in lines if not _INFO.match(line)] or lines
    # pydantic ends a line with the value it refused
    return " | ".join(_text(line).partition(" [type=")[0] for line in lines[-3:])[-700:]


def _tells_of_requests(line: str) -> bool:
    """Whether it may hold what a user asked, what was answered or what the engine was given: that is told to nobody."""
    return any(words in line for words in _PRIVATE)


# --------------------------------------------------------------------------------------------- without a telling text
def _never_ran(evidence: Evidence) -> Verdict:
    words = clean(evidence.blocked or evidence.message)[:700].strip()
    reason = evidence.blocked_reason or evidence.reason
    kind = BLOCKED.get(reason, Kind.UNKNOWN)
    if any(word in words for word in _DEVICE_REFUSED):
        kind = Kind.NO_DEVICE
    elif kind is Kind.UNSCHEDULABLE and "persistentvolumeclaim" in words.lower():
        kind = Kind.VOLUME_MISSING  # the scheduler sees a missing or unbound claim before any kubelet does
    elif kind is Kind.VOLUME_MISSING and "secret" in words:
        kind = Kind.SECRET_MISSING
    elif kind is Kind.UNKNOWN and evidence.timed_out:
        kind = Kind.SLOW_START
    said = f"{reason}: {words}" if reason and words else reason or words
    return Verdict(kind, said or "it never ran, and nothing says why", said)


def _died(log: str, phase: Phase) -> Verdict:
    cause = _root_cause(log)
    return Verdict(Kind.ENGINE_DIED, f"the engine died while it served: {cause or _last_words(log)}", cause, phase)


def _without_text(evidence: Evidence, log: str, phase: Phase) -> Verdict:
    code, cause = evidence.exit_code, _root_cause(log)
    words = cause or _last_words(log) or "its log is empty or could not be read"
    if evidence.timed_out:
        return Verdict(
            Kind.SLOW_START, f"it did not become ready within the start timeout; last: {words}", words, phase
        )
    if code == 255 and evidence.reason == "Unknown":
        # what containerd says of a container that was there before it or its machine was started again
        return Verdict(Kind.EVICTED, "its node was started again, or lost it", words, phase)
    if code == 0:
        said = "the engine ended by itself (exit 0: vLLM ends so when its engine core dies)"
        return Verdict(Kind.ENGINE_DIED, f"{said}: {words}", words, Phase.RUN)
    if code == 2:
        return Verdict(Kind.BAD_FLAG, f"vLLM refused its command line (exit 2): {words}", words, phase)
    if code == 135:
        return Verdict(Kind.SHARED_MEMORY, "bus error (exit 135): /dev/shm is full or too small", words, phase)
    if code in (130, 143) and phase is Phase.START:
        return Verdict(
            Kind.SLOW_START, f"it was stopped while it started (exit {code}); did a probe give up?", words, phase
        )
    if code in (130, 137, 143):
        return Verdict(
            Kind.KILLED, f"it was killed from outside (exit {code}): a probe, the node or a person", words, phase
        )
    return Verdict(Kind.UNKNOWN, f"it ended with exit code {code} and no known text: {words}", words, phase)


# --------------------------------------------------------------------------------------------------- who is to blame
def _blame(figures: Numbers, evidence: Evidence) -> tuple[Blame, str]:
    """Who holds most of what was missing, on the GPU where most is held by others."""
    if not evidence.gpus:
        return Blame.UNKNOWN, ""
    return max((_on(state, figures) for state in evidence.gpus), key=lambda found: (found[2], found[1]))[:2]


def _on(state: GPUState, figures: Numbers) -> tuple[Blame, str, int]:
    leaving = sum(used for _, used in state.leaving)
    strangers = sum(used for _, _, used in state.strangers)
    over = sum(excess for _, excess in state.neighbours)
    guilty = max(
        (leaving, Blame.LEAVING, ", ".join(f"{pod} ({gib(used)})" for pod, used in state.leaving[:4])),
        (
            strangers,
            Blame.STRANGER,
            ", ".join(f"pid {pid} {name} ({gib(used)})" for pid, name, used in state.strangers[:4]),
        ),
        (over, Blame.NEIGHBOUR, ", ".join(f"{pod} ({gib(excess)} over)" for pod, excess in state.neighbours[:4])),
    )
    if guilty[0] >= NOISE:
        return guilty[1], guilty[2], guilty[0]
    if state.starting:
        return Blame.STARTING, ", ".join(state.starting[:4]), 0
    if state.promised + strangers > state.usable or (figures.wanted is not None and figures.wanted > state.free):
        return Blame.LEDGER, f"{gib(state.promised)} promised of {gib(state.usable)}", 0
    return Blame.NOBODY, "", -1


_BLAMES = {
    Blame.STRANGER: "the GPU is also used by processes that are not Cotenant's: {}",
    Blame.NEIGHBOUR: "a neighbour uses more than planned: {}",
    Blame.LEAVING: "memory of a tenant that ended was not yet given back: {}",
    Blame.STARTING: "another tenant started or left at the same time: {}",
    Blame.LEDGER: "Cotenant promised more than there is: {}",
}


def _say(text: str, blame: Blame, blamed: str) -> str:
    return f"{text}; {_BLAMES[blame].format(blamed)}" if blame in _BLAMES else text
