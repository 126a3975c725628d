"""How a share and a quantity are written: the patterns the API server checks, the same words core.share parses."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from cotenant.api.meta import schema_extra

_PERCENT = r"(100(\.0{1,2})?|[1-9][0-9]?(\.[0-9]{1,2})?|0\.[1-9][0-9]?|0\.0[1-9])%"
_BYTES = r"[1-9][0-9]{0,6}(\.[0-9]{1,3})?(Mi|Gi|Ti)"

_LARGEST = (
    "self == 'auto' || self.endsWith('%') || quantity(self).compareTo(quantity('2Ti')) <= 0",
    'no GPU has more than 2Ti of memory; write a percentage of each GPU ("70%") or fewer bytes ("60Gi")',
)

ShareText = Annotated[
    str,
    Field(
        pattern=f"^(auto|{_PERCENT}|{_BYTES})$",
        max_length=16,
        json_schema_extra=schema_extra(cel=[_LARGEST]),
        description=(
            'Memory each replica may use on every GPU it lands on: "70%" of the GPU\'s usable memory, "60Gi" of it, or '
            '"auto" for what the model is estimated to need. Becomes vLLM\'s --gpu-memory-utilization.'
        ),
    ),
]
FixedShareText = Annotated[
    str,
    Field(
        pattern=f"^({_PERCENT}|{_BYTES})$",
        max_length=16,
        json_schema_extra=schema_extra(cel=[_LARGEST]),
        description='A share as a number: "80%" or "60Gi".',
    ),
]
HeadroomText = Annotated[
    str,
    Field(
        pattern=r"^([1-8]?[0-9](\.[0-9]{1,2})?|90(\.0{1,2})?)%$",
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
        json_schema_extra=schema_extra(int_or_string=True) | {"pattern": r"^[0-9]{1,6}(\.[0-9]{1,3})?m?$"},
        description='CPU, such as "4" or "500m".',
    ),
]
MemoryText = Annotated[
    str | int,
    Field(
        json_schema_extra=schema_extra(int_or_string=True)
        | {"pattern": r"^[0-9]{1,18}(\.[0-9]{1,3})?(Ki|Mi|Gi|Ti|k|M|G|T)?$"},
        description='Host memory, such as "48Gi".',
    ),
]
