"""How much of a GPU a replica may use: percent or bytes in the spec, one fraction on vLLM's command line.

vLLM takes `ceil(total * flag)` bytes, total being what CUDA sees: NVML v2 total - reserved (equal to torch's to the byte on an H200).
So a fraction is kept as whole ten-thousandths: sums are exact, and 70 % + 20 % + 10 % headroom is exactly the card.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

SCALE = 10_000
"""Ten-thousandths in 1: the four digits of the flag."""

GIB = 1 << 30
MIB = 1 << 20

_SUFFIX: dict[str, Fraction] = {
    suffix: Fraction(factor)
    for suffix, factor in {
        "": 1, "Ki": 1 << 10, "Mi": MIB, "Gi": GIB, "Ti": 1 << 40, "Pi": 1 << 50, "Ei": 1 << 60,
        "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15, "E": 10**18,
    }.items()
} | {"m": Fraction(1, 10**3), "u": Fraction(1, 10**6), "n": Fraction(1, 10**9)}  # fmt: skip
_QUANTITY = re.compile(
    r"^\+?(?=\.?[0-9])([0-9]{0,24})(?:\.([0-9]{0,24}))?(?:(Ki|Mi|Gi|Ti|Pi|Ei|k|M|G|T|P|E|m|u|n)|[eE]([+-]?[0-9]{1,2}))?$",
    re.ASCII,
)
"""https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/"""
_PERCENT = re.compile(r"^([0-9]{1,3})(?:\.([0-9]{1,2}))?%$")


@dataclass(frozen=True, slots=True, order=True)
class Utilization:
    """The fraction of a GPU's usable memory an engine is told it may use."""

    ten_thousandths: int

    def of(self, memory: int) -> int:
        """Bytes granted on a GPU with `memory` usable bytes."""
        return memory * self.ten_thousandths // SCALE

    def __str__(self) -> str:
        """As `--gpu-memory-utilization` wants it: `0.70`, `0.4312`, `1.00`."""
        digits = f"{self.ten_thousandths % SCALE:04d}"
        while len(digits) > 2 and digits.endswith("0"):
            digits = digits[:-1]
        return f"{self.ten_thousandths // SCALE}.{digits}"


@dataclass(frozen=True, slots=True)
class Percent:
    """A share as a part of each GPU it lands on."""

    ten_thousandths: int

    def utilization(self, memory: int) -> Utilization:  # noqa: ARG002 (the same on every GPU)
        """The flag that grants it."""
        return Utilization(self.ten_thousandths)

    def __str__(self) -> str:
        whole, rest = divmod(self.ten_thousandths, 100)
        return f"{whole}.{rest:02d}".rstrip("0").rstrip(".") + "%" if rest else f"{whole}%"


@dataclass(frozen=True, slots=True)
class Bytes:
    """A share as bytes of each GPU it lands on."""

    bytes: int

    def utilization(self, memory: int) -> Utilization:
        """The smallest four-digit flag that grants it; above 1 where the GPU is too small."""
        return Utilization(-(-self.bytes * SCALE // memory) if memory > 0 else SCALE + 1)

    def __str__(self) -> str:
        return gib(self.bytes)


@dataclass(frozen=True, slots=True)
class Auto:
    """A share the estimate chooses (`share: auto`)."""

    def __str__(self) -> str:
        return "auto"


Share = Percent | Bytes | Auto


def read_utilization(flag: str) -> Utilization | None:
    """What `--gpu-memory-utilization` was given; None where that is no fraction of a GPU."""
    found = re.fullmatch(r"0?(?:\.([0-9]{1,4})[0-9]*)?|1(?:\.0*)?", flag) if flag else None
    if found is None:
        return None
    return Utilization(SCALE if flag.startswith("1") else int((found[1] or "0").ljust(4, "0")))


def parse_share(text: str) -> Share:
    """`70%`, `60Gi` or `auto`; ValueError says what else it could be."""
    if text == "auto":
        return Auto()
    if text.endswith("%"):
        return Percent(parse_percent(text))
    amount = parse_quantity(text)
    if amount < MIB:
        raise ValueError(f'"{text}" is less than 1Mi; write a percentage ("70%"), a quantity ("60Gi") or "auto"')
    return Bytes(amount)


def parse_percent(text: str) -> int:
    """`12.5%` as ten-thousandths, 1 to 10,000."""
    found = _PERCENT.match(text)
    value = int(found[1]) * 100 + int((found[2] or "0").ljust(2, "0")) if found else 0
    if not 0 < value <= SCALE:
        raise ValueError(f'"{text}" is not a percentage above 0% and up to 100%')
    return value


def parse_quantity(text: str | int) -> int:
    """A Kubernetes quantity (`40Gi`, `512Mi`, `2e9`) as whole units, rounded up."""
    found = _QUANTITY.match(str(text))
    if not found:
        raise ValueError(f'"{text}" is not a quantity such as "60Gi" or "512Mi"')
    return ceil(_amount(found))


def parse_cpu(text: str | int | float) -> int:
    """A CPU quantity (`4`, `500m`, `1.5`) as thousandths of a core, rounded up."""
    found = _QUANTITY.match(str(text))
    if not found:
        raise ValueError(f'"{text}" is not a CPU quantity such as "4" or "500m"')
    return ceil(1000 * _amount(found))


def _amount(found: re.Match[str]) -> Fraction:
    whole, fraction, suffix, exponent = found[1], found[2] or "", found[3] or "", found[4]
    scale = _SUFFIX[suffix] if exponent is None else Fraction(10) ** int(exponent)
    return Fraction(int(whole + fraction or "0"), 10 ** len(fraction)) * scale


def gib(amount: int) -> str:
    """Bytes for people: `60Gi`, `31.4Gi`, `512Mi`."""
    if abs(amount) < GIB and amount % GIB:
        return f"{amount / MIB:.0f}Mi"
    text = f"{amount / GIB:.1f}"
    return (text[:-2] if text.endswith(".0") else text) + "Gi"
