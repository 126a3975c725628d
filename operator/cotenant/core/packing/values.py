"""The values of a problem file: each reads one and raises ValueError, saying what it should have been."""

from __future__ import annotations

from fractions import Fraction

from cotenant.core.packing.fields import describe
from cotenant.core.share import Bytes, Percent, Share, parse_cpu, parse_percent, parse_quantity


def quantity(value: object) -> int:
    """Bytes."""
    if isinstance(value, float) and value.is_integer():  # JSON's 2e9
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError(f'must be a quantity such as "60Gi" or bytes, not {describe(value)}')
    return parse_quantity(value)


def positive(value: object) -> int:
    """Bytes, more than none."""
    amount = quantity(value)
    if amount <= 0:
        raise ValueError(f"must be more than 0, not {describe(value)}")
    return amount


def cpu(value: object) -> int:
    """Thousandths of a core."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f'must be a number of CPUs such as "4" or "500m", not {describe(value)}')
    return parse_cpu(value)


def headroom(value: object) -> int:
    """Ten-thousandths of a GPU."""
    if value in (0, "0", "0%", "0.0%", "0.00%") and not isinstance(value, bool):
        return 0
    if not isinstance(value, str) or not value.endswith("%"):
        raise ValueError(f'must be a percentage of each GPU\'s memory such as "5%", not {describe(value)}')
    return parse_percent(value)


def share(value: object) -> Share:
    """A part of each GPU, or bytes."""
    if isinstance(value, str) and value.endswith("%"):
        return Percent(parse_percent(value))
    if value == "auto":
        raise ValueError('"auto" needs a model\'s config; write a percentage ("70%") or a quantity ("60Gi")')
    return Bytes(positive(value))


def cost(value: object) -> Fraction:
    """Any number that is not negative, exactly as it was written."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e12:
        raise ValueError(f"must be a number from 0, not {describe(value)}")
    return Fraction(str(value))
