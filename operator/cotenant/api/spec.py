"""`ModelPlacement.spec`: what a user writes."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field

from cotenant.api.meta import LabelKey, LabelValue, Name, Resource, Rule, schema_extra
from cotenant.api.share import CPUText, FixedShareText, HeadroomText, MemoryText, ShareText

URI = (
    r"^(hf://[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*(@[A-Za-z0-9][A-Za-z0-9._-]*)?"
    r"|pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/[A-Za-z0-9][A-Za-z0-9._-]*)*"
    r"|oci://[a-z0-9][A-Za-z0-9._:/@-]*)$"
)
_TOKEN = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)]


class SpreadText(StrEnum):
    """How far apart the replicas of one model must be."""

    NONE = "None"
    GPU = "GPU"
    NODE = "Node"


class RemedyText(StrEnum):
    """A change the operator may make by itself after an out-of-memory."""

    REDUCE_CONTEXT = "ReduceContext"
    REDUCE_BATCH = "ReduceBatch"
    GROW_SHARE = "GrowShare"
    MOVE = "Move"


class StrategyText(StrEnum):
    """How a changed spec replaces what runs."""

    RECREATE = "Recreate"
    SURGE_IF_ROOM = "SurgeIfRoom"


class NodesField(Resource):
    """Which nodes' GPUs may be used; omitted = every managed node."""

    selector: Annotated[
        dict[LabelKey, LabelValue],
        Field(description="Labels a node must carry.", json_schema_extra={"maxProperties": 16}),
    ] = {}
    names: Annotated[
        tuple[Annotated[str, Field(max_length=253)], ...],
        Field(max_length=512, json_schema_extra=schema_extra(is_set=True), description="Node names; empty = any."),
    ] = ()


class NodeShareField(Resource):
    """Another share on some nodes."""

    selector: Annotated[
        dict[LabelKey, LabelValue],
        Field(
            description="Labels of the nodes this share holds on.",
            json_schema_extra={"maxProperties": 16, "minProperties": 1},
        ),
    ]
    share: ShareText


class CUDAGraphsField(Resource):
    """CUDA graph capture: faster decoding for 0.1 to 2 GiB of memory."""

    enabled: Annotated[bool, Field(description="false = --enforce-eager.")] = True
    max_capture_size: Annotated[
        int | None, Field(ge=1, le=8192, description="Largest batch captured (--max-cudagraph-capture-size).")
    ] = None


def _without(flag: str) -> Callable[[Any], bool]:
    return lambda args: not any(argument.startswith(flag) for argument in args)


EXTRA_ARGS_RULES = [
    Rule(f"!self.exists(a, a.startsWith('{flag}'))", f"the operator sets {flag}: use {instead} instead", _without(flag))
    for flag, instead in (
        ("--gpu-memory-utilization", "share"),
        ("--tensor-parallel-size", "tensorParallelSize"),
        ("--kv-cache-memory-bytes", "share"),
        ("--port", "the Service of the model"),
        ("--api-key", "a gateway in front of the Service"),
    )
]


class EngineField(Resource):
    """How the engine runs. What is not written is derived from the share, never from the card."""

    name: Annotated[
        str,
        Field(
            max_length=63,
            pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$",
            description="An entry of the operator's engine catalogue.",
        ),
    ] = "vllm"
    quantization: Annotated[_TOKEN | None, Field(description="--quantization: fp8, awq, gptq, ...")] = None
    dtype: Annotated[
        str | None,
        Field(
            description="--dtype.",
            json_schema_extra={"enum": ["auto", "half", "float16", "bfloat16", "float", "float32"]},
        ),
    ] = None
    kv_cache_dtype: Annotated[_TOKEN | None, Field(description="--kv-cache-dtype: auto, fp8, fp8_e4m3, ...")] = None
    max_model_len: Annotated[
        int | str | None,
        Field(
            json_schema_extra=schema_extra(int_or_string=True)
            | {"pattern": "^auto$", "minimum": 1, "maximum": 16777216},
            description='Longest context in tokens (--max-model-len), or "auto": the longest that fits the share.',
        ),
    ] = None
    max_num_seqs: Annotated[
        int | None, Field(ge=1, le=65536, description="Requests in one batch (--max-num-seqs).")
    ] = None
    max_num_batched_tokens: Annotated[
        int | None, Field(ge=1, le=1048576, description="Tokens in one step (--max-num-batched-tokens).")
    ] = None
    target_concurrency: Annotated[
        int | None, Field(ge=1, le=4096, description="Requests of full length `share: auto` makes room for (8).")
    ] = None
    cuda_graphs: CUDAGraphsField = CUDAGraphsField()
    compilation_config: Annotated[
        dict[str, Any] | None,
        Field(
            json_schema_extra=schema_extra(preserve=True),
            description="vLLM's --compilation-config: an object, as its JSON would be.",
        ),
    ] = None
    limit_mm_per_prompt: Annotated[
        dict[Annotated[str, Field(max_length=32)], Annotated[int, Field(ge=0, le=1024)]] | None,
        Field(
            alias="limitMMPerPrompt",
            json_schema_extra={"maxProperties": 8},
            description="Images, videos and audios in one prompt (--limit-mm-per-prompt).",
        ),
    ] = None
    mm_processor_kwargs: Annotated[
        dict[str, Any] | None,
        Field(
            json_schema_extra=schema_extra(preserve=True),
            description="--mm-processor-kwargs: an object, as its JSON would be.",
        ),
    ] = None
    mm_processor_cache_gb: Annotated[
        int | None,
        Field(
            alias="mmProcessorCacheGB",
            ge=0,
            le=1024,
            description="Host memory for processed images in GiB (--mm-processor-cache-gb).",
        ),
    ] = None
    cpu_offload_gb: Annotated[
        int | None,
        Field(alias="cpuOffloadGB", ge=0, le=4096, description="GiB of weights kept in host memory per GPU."),
    ] = None
    kv_offloading_gb: Annotated[
        int | None,
        Field(alias="kvOffloadingGB", ge=0, le=4096, description="GiB of host memory for offloaded KV cache."),
    ] = None
    load_format: Annotated[
        _TOKEN | None, Field(description="--load-format; sharded_state for a checkpoint saved per rank.")
    ] = None
    extra_args: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=256)], ...],
        Field(
            max_length=16,
            json_schema_extra=schema_extra(
                atomic=True,
                # the common ones at once; every other spelling is refused by name in the status
                cel=EXTRA_ARGS_RULES,
            ),
            description="Further vLLM arguments, as a list, never through a shell. Flags the operator owns are refused by name.",
        ),
    ] = ()


class ResourcesField(Resource):
    """What a replica asks of its node beside the GPU."""

    cpu: CPUText | None = None
    memory: MemoryText | None = None


class CacheField(Resource):
    """Where what was downloaded from the hub is kept; without it every start of an engine downloads its model anew."""

    claim: Annotated[
        str,
        Field(
            pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$",
            max_length=253,
            description="A PersistentVolumeClaim of this namespace that can be written; models may share one. On several nodes it "
            "must be ReadWriteMany.",
        ),
    ]


class OnOutOfMemoryField(Resource):
    """What may change by itself when an engine runs out of memory. Nothing here = it is only started again."""

    max_share: Annotated[FixedShareText | None, Field(description="How far GrowShare may go.")] = None
    max_attempts: Annotated[
        int, Field(ge=1, le=100, description="Starts within an hour before the replica is left Failed.")
    ] = 4
    allow: Annotated[
        tuple[RemedyText, ...],
        Field(max_length=4, json_schema_extra=schema_extra(is_set=True), description="Remedies allowed."),
    ] = ()


class RolloutField(Resource):
    """How a changed spec replaces what runs."""

    strategy: Annotated[
        StrategyText,
        Field(description="Recreate: old out, then new in. SurgeIfRoom: new beside old where the ledger has room."),
    ] = StrategyText.RECREATE
    max_unavailable: Annotated[
        int, Field(ge=1, le=64, description="Replicas of one model that may be down for a change at the same time.")
    ] = 1


class ModelField(Resource):
    """One model: its share and its replicas."""

    name: Annotated[Name, Field(description="Also the served model name unless servedName is given.")]
    uri: Annotated[
        str,
        Field(
            pattern=URI,
            max_length=512,
            description="Where the model is: hf://org/name[@revision], pvc://claim/path, or oci://image (mounted as an image volume).",
        ),
    ]
    share: ShareText
    served_name: Annotated[
        str | None,
        Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]*$", max_length=128, description="The name clients ask for."),
    ] = None
    per_node: Annotated[
        tuple[NodeShareField, ...],
        Field(
            max_length=16,
            json_schema_extra=schema_extra(atomic=True),
            description="Other shares on other nodes; the first match wins.",
        ),
    ] = ()
    replicas: Annotated[int, Field(ge=0, le=1000, description="Engines wanted; 0 = none runs.")] = 1
    tensor_parallel_size: Annotated[
        int, Field(ge=1, le=64, description="GPUs of one node each replica is split over; the share holds on each.")
    ] = 1
    spread: Annotated[SpreadText, Field(description="Keep replicas of this model on different GPUs or nodes.")] = (
        SpreadText.NONE
    )
    priority: Annotated[
        int, Field(ge=-1000000, le=1000000, description="Higher is placed first and may take the place of lower.")
    ] = 0
    engine: EngineField = EngineField()
    resources: Annotated[ResourcesField, Field(description="CPU and memory of the host.")] = ResourcesField()
    token_secret: Annotated[
        str | None,
        Field(
            pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$",
            max_length=253,
            description="A Secret of this namespace whose key `token` holds the hub token.",
        ),
    ] = None
    cache: CacheField | None = None
    on_out_of_memory: OnOutOfMemoryField = OnOutOfMemoryField()


MODEL_RULES = [
    Rule(
        "!has(self.tokenSecret) || self.uri.startsWith('hf://')",
        "tokenSecret is only used with an hf:// uri; remove it",
        lambda model: "tokenSecret" not in model or model["uri"].startswith("hf://"),
    ),
    Rule(
        "!has(self.cache) || self.uri.startsWith('hf://')",
        "cache is only used with an hf:// uri; remove it",
        lambda model: "cache" not in model or model["uri"].startswith("hf://"),
    ),
    Rule(
        "!has(self.onOutOfMemory) || !has(self.onOutOfMemory.allow) || has(self.onOutOfMemory.maxShare)"
        " || !self.onOutOfMemory.allow.exists(r, r == 'GrowShare')",
        "onOutOfMemory.allow has GrowShare: say how far in onOutOfMemory.maxShare",
        lambda model: (
            "GrowShare" not in model.get("onOutOfMemory", {}).get("allow", ()) or "maxShare" in model["onOutOfMemory"]
        ),
    ),
    Rule(
        "!has(self.engine) || !has(self.engine.cudaGraphs) || !has(self.engine.cudaGraphs.enabled)"
        " || self.engine.cudaGraphs.enabled || !has(self.engine.cudaGraphs.maxCaptureSize)",
        "engine.cudaGraphs.maxCaptureSize has no effect with enabled: false; remove one of them",
        lambda model: (
            model.get("engine", {}).get("cudaGraphs", {}).get("enabled", True)
            or "maxCaptureSize" not in model["engine"]["cudaGraphs"]
        ),
    ),
]


class SpecField(Resource):
    """These models, these shares, these nodes."""

    nodes: NodesField = NodesField()
    headroom: HeadroomText | None = None
    models: Annotated[
        tuple[Annotated[ModelField, Field(json_schema_extra=schema_extra(cel=MODEL_RULES))], ...],
        Field(
            min_length=1,
            max_length=128,
            json_schema_extra=schema_extra(map_keys=["name"]),
            description="The models; each name once.",
        ),
    ]
    rollout: RolloutField = RolloutField()
