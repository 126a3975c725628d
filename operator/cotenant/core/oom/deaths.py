"""How vLLM says that it dies: the texts, in the order in which the first match decides.

Wording of vLLM 0.33.0 (read in its source), with what 0.9 to 0.32 said where it differs. A new text is a new row here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """Why a replica does not run: the closed set."""

    STOPPED = "Stopped"
    """We deleted it: no fault."""
    HOST_OUT_OF_MEMORY = "HostOutOfMemory"
    NO_ROOM_AT_START = "NoRoomAtStart"
    PROFILE_DISTURBED = "ProfileDisturbed"
    NO_KV_CACHE_MEMORY = "NoKVCacheMemory"
    KV_CACHE_TOO_SMALL = "KVCacheTooSmall"
    WEIGHTS_DO_NOT_FIT = "WeightsDoNotFit"
    PROFILE_OUT_OF_MEMORY = "ProfileOutOfMemory"
    KV_CACHE_OUT_OF_MEMORY = "KVCacheOutOfMemory"
    GRAPH_CAPTURE_OUT_OF_MEMORY = "GraphCaptureOutOfMemory"
    RUNTIME_OUT_OF_MEMORY = "RuntimeOutOfMemory"
    SLEEP_MODE_OUT_OF_MEMORY = "SleepModeOutOfMemory"
    SLEEP_DISTURBED = "SleepDisturbed"
    SHARED_MEMORY = "SharedMemory"
    DEVICE_BUSY = "DeviceBusy"
    NO_DEVICE = "NoDevice"
    DEVICE_ERROR = "DeviceError"
    NCCL = "NCCL"
    PORT_IN_USE = "PortInUse"
    ENGINE_HUNG = "EngineHung"
    SLOW_START = "SlowStart"
    SOURCE_UNREACHABLE = "SourceUnreachable"
    SOURCE_MISSING = "SourceMissing"
    DISK_FULL = "DiskFull"
    BAD_FLAG = "BadFlag"
    WORKER_LOST = "WorkerLost"
    ENGINE_DIED = "EngineDied"
    KILLED = "Killed"
    EVICTED = "Evicted"
    IMAGE_MISSING = "ImageMissing"
    SECRET_MISSING = "SecretMissing"
    VOLUME_MISSING = "VolumeMissing"
    UNSCHEDULABLE = "Unschedulable"
    UNKNOWN = "Unknown"


class Phase(StrEnum):
    """When it died."""

    START = "start"
    RUN = "run"


class Stage(StrEnum):
    """How far a start had come when memory ran out."""

    LOADING = "loading"
    PROFILING = "profiling"
    SIZED = "sized"
    """The KV cache has its size; it is being allocated, or CUDA graphs are captured."""


@dataclass(frozen=True, slots=True)
class Death:
    """One row: what it means when one of `texts` stands in the log of this phase, and the start had come to `stage`."""

    kind: Kind
    phases: tuple[Phase, ...]
    texts: tuple[tuple[str, ...], ...]
    """Alternatives; every part of one must stand in the same line."""
    stage: Stage | None = None
    near: tuple[str, ...] = ()
    """One of these must stand in the traceback above the line (the 8,000 characters before it)."""


START, RUN, BOTH = (Phase.START,), (Phase.RUN,), (Phase.START, Phase.RUN)

OUT_OF_MEMORY = (
    ("CUDA out of memory",),
    ("CUDA error: out of memory",),
    ("CUDA driver error: out of memory",),
    ("CUBLAS_STATUS_ALLOC_FAILED",),
    ("CUDA Error: out of memory at", "cumem_allocator"),
)
NCCL_OUT_OF_MEMORY = (("Cuda failure", "out of memory"), ("Failed to CUDA calloc",))

DEATHS: tuple[Death, ...] = (
    Death(
        Kind.NO_ROOM_AT_START,
        START,
        (
            ("Free memory on device", "on startup is less than desired GPU memory utilization"),
            ("Free memory on device", "is less than the engine's budget after excluding"),
            *NCCL_OUT_OF_MEMORY,  # NCCL takes its buffers before vLLM looks at what is free
        ),
    ),
    Death(Kind.PROFILE_DISTURBED, START, (("Error in memory profiling. Initial free memory",),)),
    Death(
        Kind.NO_KV_CACHE_MEMORY,
        START,
        (
            ("No available memory for the cache blocks",),
            ("frontend multimodal GPU decoding reserves", "available for the KV cache"),
        ),
    ),
    Death(
        Kind.KV_CACHE_TOO_SMALL,
        START,
        (
            ("To serve at least one request with the model", "is larger than the available KV cache memory"),
            ("Cannot auto-fit max_model_len",),
            ("larger than the maximum number of tokens that can be stored in KV cache",),  # V0
        ),
    ),
    Death(Kind.WEIGHTS_DO_NOT_FIT, START, (("Failed to load model - not enough GPU memory",),)),
    Death(Kind.PROFILE_OUT_OF_MEMORY, START, (("CUDA out of memory occurred when warming up",),)),
    Death(Kind.WEIGHTS_DO_NOT_FIT, START, OUT_OF_MEMORY, stage=Stage.LOADING),
    Death(Kind.PROFILE_OUT_OF_MEMORY, START, OUT_OF_MEMORY, stage=Stage.PROFILING),
    Death(
        Kind.KV_CACHE_OUT_OF_MEMORY,
        START,
        OUT_OF_MEMORY,
        stage=Stage.SIZED,
        near=("initialize_kv_cache", "allocate_kv_cache", "init_kv_cache", "initialize_from_config"),
    ),
    Death(Kind.GRAPH_CAPTURE_OUT_OF_MEMORY, START, OUT_OF_MEMORY, stage=Stage.SIZED),
    Death(Kind.RUNTIME_OUT_OF_MEMORY, RUN, (*OUT_OF_MEMORY[:-1], *NCCL_OUT_OF_MEMORY)),
    Death(
        Kind.SHARED_MEMORY,
        BOTH,
        (
            ("Insufficient space in /dev/shm",),
            ("No space left on device", "/dev/shm"),
            ("died unexpectedly (exit code: -7)",),
            ("Bus error",),
        ),
    ),
    Death(
        Kind.DEVICE_BUSY,
        BOTH,
        (("CUDA-capable device(s) is/are busy or unavailable",), ("MPS server is not ready",)),
    ),
    Death(
        Kind.NO_DEVICE,
        BOTH,
        (
            ("No CUDA GPUs are available",),
            ("no CUDA-capable device is detected",),
            ("Failed to infer device type",),
            ("CUDA driver version is insufficient",),
            ("no kernel image is available for execution on the device",),
        ),
    ),
    Death(Kind.PORT_IN_USE, START, (("EADDRINUSE",), ("ddress already in use",))),
    Death(Kind.ENGINE_HUNG, BOTH, (("RPC call to", "timed out"),)),
    Death(Kind.SLOW_START, START, (("Timed out waiting for engine core processes to",),)),
    Death(
        Kind.SOURCE_UNREACHABLE,
        START,
        (
            ("We couldn't connect to 'http",),
            ("cannot find the requested files in the local cache",),
            ("cannot find the appropriate snapshot folder",),
            ("Temporary failure in name resolution",),
            ("Max retries exceeded with url",),
            ("offline mode is enabled",),
        ),
    ),
    Death(
        Kind.SOURCE_MISSING,
        START,
        (
            ("gated repo",),
            ("RepositoryNotFoundError",),
            ("Repository Not Found for url",),
            ("Revision Not Found for url",),
            ("is not a local folder and is not a valid model identifier",),
            ("401 Client Error",),
            ("403 Client Error",),
            ("404 Client Error",),
            ("Invalid repository ID or local directory specified",),
            ("Cannot find any model weights with",),
            ("does not appear to have a file named",),
        ),
    ),
    Death(Kind.DISK_FULL, BOTH, (("No space left on device",), ("Disk quota exceeded",))),
    Death(
        Kind.BAD_FLAG,
        START,
        (
            ("error: unrecognized arguments",),
            (": error: argument",),
            (": error: ambiguous option",),
            ("are not supported for now",),
            ("validation error for",),
            ("validation errors for",),
            ("is greater than the derived max_model_len",),
            ("must be divisible by tensor parallel size",),
        ),
    ),
    Death(Kind.NCCL, BOTH, (("NCCL error",), ("ncclUnhandledCudaError",), ("ncclSystemError",), ("DistBackendError",))),
    Death(Kind.DEVICE_ERROR, BOTH, (("CUDA error: ",), ("CUDA driver error: ",), ("cudaErrorLaunchFailure",))),
    Death(Kind.SLEEP_MODE_OUT_OF_MEMORY, RUN, (OUT_OF_MEMORY[-1],)),
    Death(Kind.SLEEP_DISTURBED, RUN, (("Memory usage increased after sleeping",),)),
    Death(Kind.WORKER_LOST, BOTH, (("Worker proc", "died unexpectedly"), ("Executor failed.",))),
    Death(Kind.SLOW_START, START, (("KeyboardInterrupt: terminated",),)),
    Death(
        Kind.ENGINE_DIED,
        RUN,
        (
            ("EngineCore encountered a fatal error",),
            ("engine core exited unexpectedly",),
            ("Engine core proc", "died unexpectedly"),
            ("EngineCore encountered an issue",),
            ("EngineDeadError",),
        ),
    ),
)

_SIZED = ("GPU KV cache size:", "Available KV cache memory:", "skipped memory profiling", "in capture_model")
_LOADED = ("Model loading took", "in determine_available_memory", "in profile_run", "in profile_cudagraph_memory")
_SERVING = "Application startup complete."
_BEGINNING = ("Initializing a V1 LLM engine", "Starting to load model")


@dataclass(frozen=True, slots=True)
class Progress:
    """Where in a log a start reached its stages; the log's length where it did not."""

    loaded: int
    sized: int

    def at(self, position: int) -> Stage:
        """How far it had come at this character."""
        if position > self.sized:
            return Stage.SIZED
        return Stage.PROFILING if position > self.loaded else Stage.LOADING


def progress(log: str) -> Progress:
    """Read once, so that a log full of errors costs no more than any other."""
    loaded, sized = (
        min((at for marker in markers if (at := log.find(marker)) >= 0), default=len(log))
        for markers in (_LOADED, _SIZED)
    )
    return Progress(loaded, sized)


def began(log: str) -> bool:
    """Whether this log holds the beginning of a start."""
    return any(marker in log for marker in _BEGINNING)


def served(log: str) -> bool:
    """Whether this log says that the engine was up."""
    return _SERVING in log
