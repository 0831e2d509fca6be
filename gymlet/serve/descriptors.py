"""How many files a process may open: each request takes two, one to the client and one to the provider."""

from __future__ import annotations

import math
import resource
from contextlib import suppress

PER_REQUEST = 2
SPARE = 100
"""For everything else: listening sockets, the log, the event loop, connections that are idle."""


def raise_limit() -> None:
    """Allow as many as this user may; a system that says no leaves it as it is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def shortage(requests: int, num_workers: int, limit: int) -> str | None:
    """What to tell where so many requests at once do not fit into ``limit`` files of each worker; None: they do."""
    needed = PER_REQUEST * math.ceil(requests / num_workers) + SPARE
    if needed <= limit:
        return None
    fitting = math.ceil(PER_REQUEST * requests / (limit - SPARE)) if limit > SPARE else 0
    spread = f", or spread the requests with num_workers={fitting}" if 1 < fitting <= 256 else ""
    return (
        f"{requests} requests at once (num_concurrent_requests of all models) take about {needed} open files in each "
        f"process, and {limit} are allowed: raise the limit with 'ulimit -n {needed}'{spread}; those beyond it fail"
    )


def limit() -> int:
    """How many files this process may open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 2**31 if soft == resource.RLIM_INFINITY else soft
