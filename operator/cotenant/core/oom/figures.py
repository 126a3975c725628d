"""The numbers in what vLLM and CUDA say when memory runs out, as bytes, tokens and seconds."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cotenant.core.share import GIB


@dataclass(frozen=True, slots=True)
class Numbers:
    """What a text says in numbers: bytes, tokens, seconds; None where it does not."""

    free: int | None = None
    """Free on the GPU when it looked, after its own context."""
    total: int | None = None
    wanted: int | None = None
    """Its share, as vLLM computed it."""
    allocation: int | None = None
    """What it tried to allocate when memory ran out."""
    own: int | None = None
    """What it had in use itself."""
    others: tuple[tuple[int, int], ...] = ()
    """(pid, bytes) of other processes on the GPU, as the text names them."""
    kv_needed: int | None = None
    """KV cache that one sequence of the asked length needs."""
    kv_available: int | None = None
    """KV cache that was left for it; may be negative."""
    max_model_len: int | None = None
    estimated_max_model_len: int | None = None
    initial_free: int | None = None
    current_free: int | None = None
    sequences: int | None = None
    """Dummy requests of the warm-up: the max_num_seqs it ran with."""
    required: int | None = None
    """Bytes of /dev/shm."""
    worker_exit: int | None = None
    """Exit code of the worker that was lost; negative = signal."""
    waited: int | None = None
    """Seconds."""


_GIB = r"(-?[0-9]{1,9}(?:\.[0-9]{1,6})?) ?GiB"
_SIZE = r"([0-9]{1,15}(?:\.[0-9]{1,6})?) (bytes|KiB|MiB|GiB)"
_NUMBERS: tuple[tuple[re.Pattern[str], tuple[str, ...]], ...] = tuple(
    (re.compile(pattern), fields)
    for pattern, fields in (
        (r"\((-?[0-9]{1,9}(?:\.[0-9]{1,6})?)/([0-9]{1,9}(?:\.[0-9]{1,6})?) GiB\) on startup", ("free", "total")),
        (rf"desired GPU memory utilization \([0-9.]{{1,12}}, {_GIB}\)", ("wanted",)),
        (rf"external process's weights \([0-9.]{{1,12}}, {_GIB}\)", ("wanted",)),
        (rf"\(?{_GIB} KV cache is needed", ("kv_needed",)),
        (rf"available KV cache memory \({_GIB}\)", ("kv_available",)),
        (rf"but only {_GIB} is available for the KV cache", ("kv_available",)),
        (rf"Initial free memory {_GIB}", ("initial_free",)),
        (rf"current free memory {_GIB}", ("current_free",)),
    )
)
_SIZES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (rf"Tried to allocate {_SIZE}", "allocation"),
        (rf"total capacit?y of {_SIZE}", "total"),
        (rf"of which {_SIZE} is free", "free"),
        (rf"this process has {_SIZE} memory in use", "own"),
    )
)
_COUNTS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"max seq len \(([0-9]{1,12})\)", "max_model_len"),
        (r"stimated maximum model length is ([0-9]{1,12})", "estimated_max_model_len"),
        (r"with ([0-9]{1,9}) dummy requests", "sequences"),
        (r"exit code: (-?[0-9]{1,4})\)", "worker_exit"),
        (r"Waited ([0-9]{1,9})s", "waited"),
    )
)
_SHM = re.compile(r"([0-9]{1,12}) MiB required")
_OTHER = re.compile(rf"Process ([0-9]{{1,9}}) has {_SIZE} memory in use")
_KV = re.compile(rf"Available KV cache memory: {_GIB}")
_UNITS: dict[str, int] = {"bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": GIB}


def numbers(line: str, before: str) -> Numbers:
    """The numbers of the line that matched; what was left for the KV cache may stand before it."""
    found: dict[str, int] = {}
    for pattern, fields in _NUMBERS:
        if match := pattern.search(line):
            found.update(zip(fields, (_bytes(text, "GiB") for text in match.groups()), strict=True))
    for pattern, name in _SIZES:
        if match := pattern.search(line):
            found[name] = _bytes(match[1], match[2])
    for pattern, name in _COUNTS:
        if match := pattern.search(line):
            found[name] = int(match[1])
    if match := _SHM.search(line):
        found["required"] = int(match[1]) << 20
    at = before.rfind("Available KV cache memory:")
    if "kv_available" not in found and at >= 0 and (match := _KV.match(before, at)):
        found["kv_available"] = _bytes(match[1], "GiB")
    others = tuple((int(match[1]), _bytes(match[2], match[3])) for match in _OTHER.finditer(line))
    return Numbers(others=others[:64], **found)


def _bytes(text: str, unit: str) -> int:
    whole, _, fraction = text.lstrip("-").partition(".")
    amount: int = int(whole + fraction) * _UNITS[unit] // 10 ** len(fraction)
    return -amount if text.startswith("-") else amount
