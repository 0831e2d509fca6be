"""What all commands share: help, errors without a traceback, exit codes."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
import threading
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

from rich.console import Console

from gymlet.config.paths import package_root
from gymlet.config.problems import ConfigError
from gymlet.config.secrets import HIDDEN, secret_values
from gymlet.serve.descriptors import raise_limit
from gymlet.wire.errors import GymletError

EXIT_OK = 0
EXIT_MISTAKE = 2
EXIT_INCOMPLETE = 3
EXIT_INTERRUPTED = 130

LOG_LEVEL_VARIABLE = "GYMLET_LOG_LEVEL"
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
GC_THRESHOLD = 10_000
"""Objects between two collections: a streamed chunk makes a dozen and drops them at once."""

_HELP = ("--help", "-h", "+help=true", "help=true", "++help=true")

T = TypeVar("T")

err = Console(stderr=True, highlight=False, soft_wrap=True)


def run_command(name: str, main: Callable[[Sequence[str]], int], usage: str) -> None:
    """Run ``main`` with the command line and leave with its exit code; a user's mistake is told in words."""
    arguments = sys.argv[1:]
    if any(argument in _HELP for argument in arguments):
        print(help_text(name, usage))
        sys.exit(EXIT_OK)
    logging.basicConfig(
        level=os.environ.get(LOG_LEVEL_VARIABLE, "WARNING").upper(),
        format=LOG_FORMAT,
    )
    sys.exit(exit_code(lambda: main(arguments)))


def exit_code(main: Callable[[], int]) -> int:
    """The exit code of ``main``; a user's mistake is told in words."""
    try:
        return main()
    except (ConfigError, GymletError) as error:
        fail(str(error))
        return EXIT_MISTAKE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK


class _Discreet(logging.Formatter):
    """Takes secrets out of whatever is logged, tracebacks included."""

    def __init__(self, secrets: Iterable[str]) -> None:
        super().__init__(LOG_FORMAT)
        self._secrets = sorted(set(secrets), key=len, reverse=True)

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        return text


def hide_in_log(tree: dict[str, Any]) -> None:
    """From now on no secret of this configuration gets into the log."""
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_Discreet(secret_values(tree)))


def run_async(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, on uvloop where it is installed."""
    raise_limit()
    gc.freeze()  # what was loaded so far stays: the collector need not look at it again and again
    gc.set_threshold(GC_THRESHOLD)
    try:
        import uvloop  # noqa: PLC0415  not on every platform
    except ImportError:
        return asyncio.run(main)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


def leave_within(seconds: float, code: int, told: str = "") -> None:
    """End the process by then, come what may: code of others may block the loop, or refuse to be cancelled."""

    def leave() -> None:
        if told:
            note(told)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)

    timer = threading.Timer(seconds, leave)
    timer.daemon = True
    timer.start()


def fail(message: str) -> None:
    """Tell what went wrong."""
    err.print("error:", style="bold red", end=" ")
    err.print(message, markup=False)


def note(message: str) -> None:
    """Tell what the user may want to know."""
    err.print(f"note: {message}", markup=False, style="yellow")


def help_text(name: str, usage: str) -> str:
    """The command's usage and the keys of its primary config, with their comments."""
    config = package_root() / "conf" / f"{name}.yaml"
    return f"{usage.strip()}\n\nKeys and their defaults (conf/{name}.yaml):\n\n{config.read_text().strip()}"
