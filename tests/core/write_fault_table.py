"""The table of docs/faults.md, made from the code's own tables. Run it to refresh the page: `uv run python tests/core/write_fault_table.py`."""

from __future__ import annotations

from pathlib import Path

from cotenant.core.oom.deaths import DEATHS, OUT_OF_MEMORY, Kind, Stage
from cotenant.core.oom.judge import BLOCKED
from cotenant.core.oom.ladder import LADDERS
from cotenant.core.oom.remedies import PERMISSION, Rung

PAGE = Path(__file__).parents[2] / "docs" / "faults.md"
BEGIN, END = "<!-- begin: fault table -->", "<!-- end: fault table -->"


def fault_table() -> str:
    """Every verdict: what it is told by, what is tried, what a person can do."""
    head = "| Verdict | When | Told by | What Cotenant tries, in order | What you can do |\n|---|---|---|---|---|\n"
    return head + "\n".join(_row(kind) for kind in Kind if kind is not Kind.STOPPED) + "\n"


def _row(kind: Kind) -> str:
    ladder = LADDERS[kind]
    phases = sorted({phase for death in DEATHS if death.kind is kind for phase in death.phases}, reverse=True)
    tried = " → ".join(_rung(rung) for rung in ladder.rungs) or "nothing: it would end the same way"
    if ladder.outside:
        tried += "; then again at most `maxAttempts` times an hour, never given up"
    elif ladder.repeat:
        tried += "; then starting again until `maxAttempts`"
    when = " or ".join(phases) or ("before the start" if _blocked(kind) else "any")
    return f"| `{kind}` | {when} | {_told(kind)} | {tried} | {ladder.advice} |"


def _rung(rung: Rung) -> str:
    return f"{rung} ({PERMISSION[rung]})" if rung in PERMISSION and PERMISSION[rung] != rung else str(rung)


def _blocked(kind: Kind) -> list[str]:
    return sorted(reason for reason, told in BLOCKED.items() if told is kind)


def _told(kind: Kind) -> str:
    texts = []
    for death in DEATHS:
        if death.kind is kind:
            if death.stage:  # every spelling of CUDA's out of memory: the first stands for all
                texts.append(f"`{OUT_OF_MEMORY[0][0]}` {_STAGES[death.stage]}")
                continue
            texts += [" … ".join(f"`{part}`" for part in parts) for parts in death.texts]
    texts += [f"reason `{reason}`" for reason in _blocked(kind)]
    return "<br>".join(dict.fromkeys([*texts, *_BESIDE.get(kind, ())]))


_STAGES = {
    Stage.LOADING: "before `Model loading took`",
    Stage.PROFILING: "between `Model loading took` and `Available KV cache memory`",
    Stage.SIZED: "after `Available KV cache memory`",
}
_BESIDE = {
    Kind.KV_CACHE_OUT_OF_MEMORY: ("… in `initialize_kv_cache` or what it calls",),
    Kind.HOST_OUT_OF_MEMORY: ("reason `OOMKilled`",),
    Kind.SHARED_MEMORY: ("exit code 135",),
    Kind.SLOW_START: ("the start timeout", "exit code 130 or 143 before it was ready"),
    Kind.BAD_FLAG: ("exit code 2",),
    Kind.KILLED: ("exit code 130, 137 or 143 and none of the above",),
    Kind.ENGINE_DIED: ("exit code 0 that nobody asked for",),
    Kind.NO_DEVICE: ("the runtime's refusal to inject the GPU",),
    Kind.UNKNOWN: ("anything else; the event keeps the text",),
}


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n{fault_table()}{END}{after}", encoding="utf-8")
