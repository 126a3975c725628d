"""How a share and a quantity are written: the patterns the API server checks, the same words core.share parses."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from cotenant.api.meta import Rule, schema_extra
from cotenant.core.share import parse_quantity

_PERCENT = r"(100(\.0{1,2})?|[1-9][0-9]?(\.[0-9]{1,2})?|0\.[1-9][0-9]?|0\.0[1-9])%"
_BYTES = r"[1-9][0-9]{0,6}(\.[0-9]{1,3})?(Mi|Gi|Ti)"

LARGEST = Rule(
    "self == 'auto' || self.endsWith('%') || quantity(self).compareTo(quantity('2Ti')) <= 0",
    'no GPU has more than 2Ti of memory; write a percentage of each GPU ("70%") or fewer bytes ("60Gi")',
    lambda share: share == "auto" or share.endswith("%") or parse_quantity(share) <= 2 << 40,
)

SHARE = f"^(auto|{_PERCENT}|{_BYTES})$"
FIXED_SHARE = f"^({_PERCENT}|{_BYTES})$"
HEADROOM = r"^([1-8]?[0-9](\.[0-9]{1,2})?|90(\.0{1,2})?)%$"
CPU = r"^[0-9]{1,6}(\.[0-9]{1,3})?m?$"
MEMORY = r"^[0-9]{1,18}(\.[0-9]{1,3})?(Ki|Mi|Gi|Ti|k|M|G|T)?$"

ShareText = Annotated[
    str,
    Field(
        pattern=SHARE,
        max_length=16,
        json_schema_extra=schema_extra(cel=[LARGEST]),
        description=(
            'Memory each replica may use on every GPU it lands on: "70%" of the GPU\'s usable memory, "60Gi" of it, or '
            '"auto" for what the model is estimated to need. Becomes vLLM\'s --gpu-memory-utilization.'
        ),
    ),
]
FixedShareText = Annotated[
    str,
    Field(
        pattern=FIXED_SHARE,
        max_length=16,
        json_schema_extra=schema_extra(cel=[LARGEST]),
        description='A share as a number: "80%" or "60Gi".',
    ),
]
HeadroomText = Annotated[
    str,
    Field(
        pattern=HEADROOM,
        max_length=8,
        description=(
            "Part of each GPU promised to nobody, 0% to 90%: what engines use beyond their shares is paid from it. "
            "The largest ask of a GPU's tenants counts. Default: the operator's (5%)."
        ),
    ),
]
CPUText = Annotated[
    str | int,
    Field(
        json_schema_extra=schema_extra(int_or_string=True) | {"pattern": CPU},
        description='CPU, such as "4" or "500m".',
    ),
]
MemoryText = Annotated[
    str | int,
    Field(
        json_schema_extra=schema_extra(int_or_string=True) | {"pattern": MEMORY},
        description='Host memory, such as "48Gi".',
    ),
]
