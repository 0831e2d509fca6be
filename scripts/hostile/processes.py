"""The processes of a measurement: started, watched through /proc, stopped."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
MODEL_CONFIG = "responses_api_models/inference_provider/configs/inference_provider.yaml"
INSTANCE = "++policy_model.responses_api_models.inference_provider."
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 30.0
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Server:
    """A server that listens, its process and those that it started."""

    port: int
    pid: int

    def pids(self) -> list[int]:
        """The process and its descendants."""
        found = [self.pid]
        for pid in found:
            found += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return found

    def rss_bytes(self) -> int:
        """Resident memory of all of them."""
        return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES for pid in self.pids())

    def open_files(self) -> int:
        """File descriptors of all of them."""
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in self.pids())  # noqa: PTH208  counted, not read


@asynccontextmanager
async def hostile_provider(folder: Path, *options: str) -> AsyncIterator[Server]:
    """The hostile provider in a process of its own."""
    port = free_port()
    command = (sys.executable, str(ROOT / "scripts" / "hostile_provider.py"), "--port", str(port), *options)
    async with _running(port, folder, folder / "provider.log", *command) as server:
        yield server


@asynccontextmanager
async def gymlet(
    folder: Path, provider: Server, model: str, *overrides: str, key: str = "none"
) -> AsyncIterator[Server]:
    """``ng_run`` in front of it, its log in ``folder``/gymlet.log, the key in env.yaml, as a user's is."""
    port = free_port()
    (folder / "env.yaml").write_text(
        f"policy_api_key: {key}\npolicy_model_name: {model}\npolicy_base_url: http://127.0.0.1:{provider.port}/v1\n"
    )
    command = (str(Path(sys.executable).with_name("ng_run")), f"+config_paths=[{MODEL_CONFIG}]")
    async with _running(
        port, folder, folder / "gymlet.log", *command, f"++head_server.port={port}", *overrides
    ) as server:
        yield server


def end_on_sigterm() -> None:
    """Let SIGTERM cancel the calling task, so that the processes it started are stopped."""
    task = asyncio.current_task()
    assert task is not None, "called by no task"  # noqa: S101
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)


def settings(**values: object) -> list[str]:
    """Keys of the model instance as overrides of the command line."""
    return [f"{INSTANCE}{key}={str(value).lower()}" for key, value in values.items()]


def free_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


@asynccontextmanager
async def _running(port: int, folder: Path, log: Path, *command: str) -> AsyncIterator[Server]:
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(*command, cwd=folder, stdout=out, stderr=out)
    try:
        await _wait_for(port, process, log)
        yield Server(port, process.pid)
    finally:
        await _stop(process)


async def _wait_for(port: int, process: asyncio.subprocess.Process, log: Path) -> None:
    """Until it answers: a system accepts connections before the server does."""
    async with asyncio.timeout(START_TIMEOUT_S):
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                if process.returncode is not None:
                    raise SystemExit(
                        f"the server on port {port} ended with {process.returncode}; {log} says why"
                    ) from None
                await asyncio.sleep(0.05)
            else:
                writer.write(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
                await reader.read(1)
                writer.close()
                return


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
