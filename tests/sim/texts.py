"""vLLM's own words, as its logs have them: what an operator must be able to read.

Formats from vLLM 0.26.0 to 0.33.0 (gpu_worker.py, kv_cache_utils.py, mem_utils.py, core.py); the noise around them is like a real log's.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache

from tests.sim.argv import Command
from tests.sim.products import GIB

Lines = list[str]


def gib(amount: int) -> str:
    """Bytes as vLLM prints them: two digits, trailing zeros dropped."""
    return str(round(amount / GIB, 2))


def stamp(unix: float) -> str:
    """The time of a log line."""
    return _stamp(int(unix))


@lru_cache(1024)
def _stamp(unix: int) -> str:
    return datetime.fromtimestamp(unix, UTC).strftime("%m-%d %H:%M:%S")


def core(unix: float, where: str, text: str, level: str = "INFO") -> str:
    """A line of the engine core."""
    return f"(EngineCore pid=61) {level} {stamp(unix)} [{where}] {text}"


def api(unix: float, where: str, text: str, level: str = "INFO") -> str:
    """A line of the API server."""
    return f"(APIServer pid=1) {level} {stamp(unix)} [{where}] {text}"


def banner(unix: float, command: Command, version: str) -> Lines:
    """The first lines of every start."""
    arguments = {
        "model_tag": command.model, "model": command.model, "served_model_name": [command.served_name],
        "gpu_memory_utilization": command.utilization, "tensor_parallel_size": command.tensor_parallel,
        "max_model_len": command.max_model_len, "kv_cache_memory_bytes": command.kv_cache_memory_bytes,
    }  # fmt: skip
    return [
        api(unix, "utils.py:299", f"vLLM server version {version}, serving model {command.model}"),
        api(unix, "utils.py:233", f"non-default args: {arguments}"),
        api(unix, "model.py:533", "Resolved architecture: CausalLM"),
        api(unix, "model.py:1582", f"Using max model len {command.max_model_len or 'of the model'}"),
    ]


def core_started(unix: float, command: Command, version: str) -> Lines:
    """The engine core comes up."""
    return [
        core(unix, "core.py:103", f"Initializing a V1 LLM engine (v{version}) with config: model='{command.model}', "
             f"tensor_parallel_size={command.tensor_parallel}, quantization={command.quantization}"),
        core(unix, "parallel_state.py:1325", f"world_size={command.tensor_parallel} rank=0 local_rank=0 "
             "distributed_init_method=file:///tmp/vllm_dist_5d2b backend=nccl"),
    ]  # fmt: skip


def model_loaded(unix: float, weights: int, seconds: float) -> str:
    """Weights are in."""
    return core(
        unix, "gpu_model_runner.py:4664", f"Model loading took {gib(weights)} GiB memory and {seconds:.2f} seconds"
    )


def kv_pinned(unix: float, free: int, kv: int) -> str:
    """--kv-cache-memory-bytes: such a start cannot mis-size itself."""
    text = f"Initial free memory {gib(free)} GiB, reserved {gib(kv)} GiB memory for KV Cache as specified by kv_cache_memory_bytes"
    return core(unix, "gpu_worker.py:700", f"{text} config and skipped memory profiling.")


def kv_available(unix: float, kv: int) -> str:
    """Profiling is over."""
    return core(unix, "gpu_worker.py:756", f"Available KV cache memory: {gib(kv)} GiB")


def auto_fit(unix: float, longest: int, length: int, kv: int) -> str:
    """--max-model-len auto took less than the model can."""
    text = f"Auto-fit max_model_len: reduced from {longest} to {length} to fit in available GPU memory"
    return core(unix, "kv_cache_planning.py:1402", f"{text} ({gib(kv)} GiB available for KV cache)")


def kv_size(unix: float, tokens: int, length: int) -> str:
    """What the cache holds."""
    text = f"GPU KV cache size: {tokens:,} tokens, Maximum concurrency for {length:,} tokens per request: {tokens / length:.2f}x"
    return core(unix, "kv_cache_utils.py:2235", text)


def graphs_captured(unix: float, seconds: float, graphs: int) -> str:
    """CUDA graphs are in."""
    text = f"Graph capturing finished in {max(1, round(seconds))} secs, took {graphs / GIB:.2f} GiB"
    return core(unix, "gpu_model_runner.py:5713", text)


def core_ready(unix: float, seconds: float) -> str:
    """The engine core is up."""
    return core(unix, "core.py:349", f"init engine (profile, create kv cache, warmup model) took {seconds:.2f} s")


def not_enough_free(rank: int, free: int, total: int, utilization: float, wanted: int) -> str:
    """The start-up check (v1/worker/utils.py request_memory)."""
    return (
        f"ValueError: Free memory on device cuda:{rank} ({gib(free)}/{gib(total)} GiB) on startup is less than desired GPU "
        f"memory utilization ({utilization}, {gib(wanted)} GiB). Decrease GPU memory utilization or reduce GPU memory used by "
        "other processes."
    )


def profiling_disturbed(initial: int, now: int) -> str:
    """A neighbour gave back more than we took while we measured (gpu_worker.py)."""
    return (
        f"AssertionError: Error in memory profiling. Initial free memory {gib(initial)} GiB, current free memory {gib(now)} "
        "GiB. This happens when other processes sharing the same container release GPU memory while vLLM is profiling during "
        "initialization. To fix this, ensure consistent GPU memory allocation or isolate vLLM in its own container."
    )


def no_cache_blocks() -> str:
    """Nothing left for KV (kv_cache_utils.py)."""
    return (
        "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing the "
        "engine. See https://docs.vllm.ai/en/latest/configuration/conserving_memory/ for more details."
    )


def cache_too_small(length: int, needed: int, available: int, longest: int, version: str) -> str:
    """KV below one sequence (kv_cache_utils.py); the typo "models's" was there until about 0.30."""
    whose = "models's" if version < "0.30" else "model's"
    estimate = (
        f"Based on the available memory, the estimated maximum model length is {longest}. " if longest > 0 else ""
    )
    return (
        f"ValueError: To serve at least one request with the {whose} max seq len ({length}), ({needed / GIB:.2f} GiB KV cache "
        f"is needed, which is larger than the available KV cache memory ({available / GIB:.2f} GiB). {estimate}Try increasing "
        "`gpu_memory_utilization` or decreasing `max_model_len` when initializing the engine. See "
        "https://docs.vllm.ai/en/latest/configuration/conserving_memory/ for more details."
    )


def cannot_auto_fit(available: int) -> str:
    """The same with --max-model-len auto."""
    return (
        f"ValueError: Cannot auto-fit max_model_len: not enough GPU memory available to serve even a single token "
        f"({available / GIB:.2f} GiB KV cache memory). Try increasing `gpu_memory_utilization`."
    )


def out_of_memory(rank: int, wanted: int, total: int, free: int, mine: int, others: tuple[tuple[int, int], ...]) -> str:
    """torch's words when cudaMalloc fails."""
    shown = "".join(f"Process {pid} has {used / GIB:.2f} GiB memory in use. " for pid, used in others)
    return (
        f"torch.OutOfMemoryError: CUDA out of memory. Tried to allocate {wanted / GIB:.2f} GiB. GPU {rank} has a total capacity "
        f"of {total / GIB:.2f} GiB of which {free / GIB:.2f} GiB is free. {shown}Including non-PyTorch memory, this process has "
        f"{mine / GIB:.2f} GiB memory in use. Of the allocated memory {mine * 0.97 / GIB:.2f} GiB is allocated by PyTorch, and "
        "212.41 MiB is reserved by PyTorch but unallocated. If reserved but unallocated memory is large try setting "
        "PYTORCH_ALLOC_CONF=expandable_segments:True to avoid fragmentation.  See documentation for Memory Management  "
        "(https://pytorch.org/docs/stable/notes/cuda.html#environment-variables)"
    )


_PACKAGES = "/usr/local/lib/python3.12/dist-packages"
_CORE_FRAMES = (
    ("engine/core.py", 1318, "run_engine_core", "engine_core = EngineCoreProc(*args, engine_index=dp_rank, **kwargs)"),
    ("engine/core.py", 1021, "__init__", "super().__init__("),
    ("engine/core.py", 141, "__init__", "self.model_executor = executor_class(vllm_config)"),
    ("executor/abstract.py", 109, "__init__", "self._init_executor()"),
    ("executor/uniproc_executor.py", 52, "_init_executor", "self.driver_worker.init_device()"),
    (
        "worker/gpu_worker.py",
        521,
        "init_device",
        "self.requested_memory = request_memory(init_snapshot, self.cache_config)",
    ),
)
_API_FRAMES = (
    ("/usr/local/bin/vllm", 10, "<module>", "sys.exit(main())"),
    (f"{_PACKAGES}/vllm/entrypoints/cli/main.py", 75, "main", "args.dispatch_function(args)"),
    (f"{_PACKAGES}/vllm/entrypoints/cli/serve.py", 127, "cmd", "uvloop.run(run_server(args))"),
    (f"{_PACKAGES}/uvloop/__init__.py", 96, "run", "return __asyncio.run("),
    ("/usr/lib/python3.12/asyncio/runners.py", 195, "run", "return runner.run(main)"),
    ("/usr/lib/python3.12/asyncio/runners.py", 118, "run", "return self._loop.run_until_complete(task)"),
    (f"{_PACKAGES}/uvloop/__init__.py", 48, "wrapper", "return await main"),
    (
        f"{_PACKAGES}/vllm/entrypoints/openai/api_server.py",
        689,
        "run_server",
        "await run_server_worker(listen_address, sock, args)",
    ),
    (
        f"{_PACKAGES}/vllm/entrypoints/openai/api_server.py",
        712,
        "run_server_worker",
        "async with build_async_engine_client(",
    ),
    ("/usr/lib/python3.12/contextlib.py", 210, "__aenter__", "return await anext(self.gen)"),
    (f"{_PACKAGES}/vllm/v1/engine/async_llm.py", 214, "from_vllm_config", "return cls("),
    (f"{_PACKAGES}/vllm/v1/engine/core_client.py", 121, "make_async_mp_client", "return AsyncMPClient(*client_args)"),
    (f"{_PACKAGES}/vllm/v1/engine/core_client.py", 820, "__init__", "super().__init__("),
    (
        f"{_PACKAGES}/vllm/v1/engine/core_client.py",
        477,
        "__init__",
        "with launch_core_engines(vllm_config, executor_class) as (manager,",
    ),
    ("/usr/lib/python3.12/contextlib.py", 144, "__exit__", "next(self.gen)"),
    (f"{_PACKAGES}/vllm/v1/engine/utils.py", 903, "launch_core_engines", "wait_for_engine_startup("),
    (f"{_PACKAGES}/vllm/v1/engine/utils.py", 960, "wait_for_engine_startup", "raise RuntimeError("),
)


def start_failed(unix: float, cause: str) -> Lines:
    """The root cause in the engine core's traceback, then the API server's own, so long that 2,048 bytes hold no cause."""
    frames = [
        line
        for path, number, function, code in _CORE_FRAMES
        for line in (f'  File "{_PACKAGES}/vllm/v1/{path}", line {number}, in {function}', f"    {code}")
    ]
    first = ["EngineCore failed to start.", "Traceback (most recent call last):", *frames, cause]
    again = ["Process EngineCore:", "Traceback (most recent call last):", *frames, cause]
    server = [
        line
        for path, number, function, code in _API_FRAMES
        for line in (f'  File "{path}", line {number}, in {function}', f"    {code}")
    ]
    last = (
        "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': 1}"
    )
    return [
        *(core(unix, "core.py:1349", line, "ERROR") for line in first),
        *(f"(EngineCore pid=61) {line}" for line in again),
        *(f"(APIServer pid=1) {line}" for line in ("Traceback (most recent call last):", *server, last)),
    ]


def free_memory_report(
    rank_free: int, total: int, utilization: float, requested: int, consumed: int, activation: int, graphs: int, kv: int
) -> str:
    """What would reproduce this start without the flag; vLLM keeps 150 MiB and counts the graph estimate twice (#57936)."""
    buffer = 150 << 20
    fit = max(0, requested - consumed - activation - 2 * graphs - buffer)
    full = max(0, rank_free - consumed - activation - 2 * graphs - buffer)
    return (
        f"Free memory on device ({gib(rank_free)}/{gib(total)} GiB) on startup. Desired GPU memory utilization is "
        f"({utilization}, {gib(requested)} GiB). Actual usage is {gib(consumed)} GiB for consumed memory (weights + non-torch), "
        f"{gib(activation)} GiB for peak activation, and {gib(graphs)} GiB for CUDAGraph memory. Replace gpu_memory_utilization "
        f"config with `--kv-cache-memory={fit}` ({gib(fit)} GiB) to fit into requested memory, or `--kv-cache-memory={full}` "
        f"({gib(full)} GiB) to fully utilize gpu memory. Current kv cache memory in use is {gib(kv)} GiB."
    )


def startup_complete(unix: float, port: int = 8000) -> Lines:
    """The last lines of a good start."""
    return [
        api(unix, "api_server.py:689", f"Starting vLLM server on http://0.0.0.0:{port}"),
        "(APIServer pid=1) INFO:     Started server process [1]",
        "(APIServer pid=1) INFO:     Waiting for application startup.",
        "(APIServer pid=1) INFO:     Application startup complete.",
    ]


def engine_died(unix: float, cause: str = "") -> Lines:
    """A run-time death: the API server ends by itself, with exit code 0 (#48966)."""
    lines = []
    if cause:
        lines += [
            core(unix, "dump_input.py:72", "Dumping input data for V1 LLM engine", "ERROR"),
            core(unix, "core.py:1391", "EngineCore encountered a fatal error.", "ERROR"),
            core(unix, "core.py:1391", "Traceback (most recent call last):", "ERROR"),
            core(unix, "core.py:1391", cause, "ERROR"),
        ]
    return [
        *lines,
        api(unix, "async_llm.py:757", "AsyncLLM output_handler failed.", "ERROR"),
        "(APIServer pid=1) vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. See stack trace (above) for the "
        "root cause.",
        '(APIServer pid=1) INFO:     10.230.0.1:41240 - "GET /health HTTP/1.1" 503 Service Unavailable',
        "(APIServer pid=1) INFO:     Shutting down",
        "(APIServer pid=1) INFO:     Waiting for application shutdown.",
        "(APIServer pid=1) INFO:     Application shutdown complete.",
        "(APIServer pid=1) INFO:     Finished server process [1]",
    ]


def shut_down(unix: float) -> Lines:
    """SIGTERM while serving."""
    return [
        api(unix, "launcher.py:254", "[shutdown] API server: shutdown triggered"),
        "(APIServer pid=1) INFO:     Shutting down",
        "(APIServer pid=1) INFO:     Application shutdown complete.",
    ]
