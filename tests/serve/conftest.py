"""Providers that misbehave, for every test here that needs one."""

import pytest

from scripts.hostile.provider import HostileProvider, Options


class Hostile:
    """The hostile provider, and where it is."""

    def __init__(self, provider, url):
        self.provider = provider
        self.url = url
        self.port = int(url.rpartition(":")[2])

    @property
    def counts(self):
        return self.provider.counts

    def attempts(self, message):
        return self.provider.attempts(message)


@pytest.fixture
async def hostile():
    """Serve the hostile provider on a real socket: ``await hostile(max_concurrent=40)``."""
    stack = []

    async def start(**options):
        provider = HostileProvider(Options(**options))
        serving = provider.serving()
        url = await serving.__aenter__()
        stack.append(serving)
        return Hostile(provider, url)

    yield start
    for serving in reversed(stack):
        await serving.__aexit__(None, None, None)
