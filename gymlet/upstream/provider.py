"""Where a model is: its endpoints, their keys, and the way there."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from ipaddress import ip_address
from pathlib import Path
from urllib.request import getproxies, proxy_bypass

from yarl import URL

from gymlet.config.problems import ConfigError, Problem
from gymlet.config.secrets import HIDDEN, MIN_SECRET_CHARS, names_secret, secrets_in_url


@dataclass(frozen=True)
class Endpoint:
    """One place that speaks chat completions, with the key that opens it; a greater ``weight`` takes more calls."""

    base_url: str
    api_key: str = field(default="", repr=False)
    weight: float = 1.0

    @cached_property
    def completions_url(self) -> URL:
        """Where every reply comes from; a query of the base_url (Azure's api-version) stays."""
        base = URL(self.base_url)
        return (base / "chat" / "completions").with_query(base.query)

    @cached_property
    def place(self) -> str:
        """The endpoint as it may be shown."""
        return str(self.completions_url.with_query(None))


@dataclass(frozen=True)
class Provider:
    """A model's endpoints.

    ``num_concurrent_requests`` is of each endpoint with its key. ``proxy`` (with the user and
    password that it wants) and ``ca_bundle`` are the way there, ``headers`` go with every request.
    """

    endpoints: tuple[Endpoint, ...]
    num_concurrent_requests: int = 1000
    proxy: str | None = None
    proxy_auth: tuple[str, str] | None = field(default=None, repr=False)
    ca_bundle: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    def redact(self, text: str) -> str:
        """The text without the keys."""
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        return text

    def proxy_for(self, endpoint: Endpoint) -> str | None:
        """The configured proxy, or the environment's (HTTPS_PROXY, HTTP_PROXY, NO_PROXY); never for this machine.

        Raises ConfigError for one of another kind.
        """
        if self.proxy is not None:
            return self.proxy
        url = URL(endpoint.base_url)
        host = url.host or ""
        if _is_local(host) or proxy_bypass(host):
            return None
        return _proxy_of_environment(url.scheme)

    def tls(self) -> ssl.SSLContext | None:
        """The context of a CA bundle of one's own. Raises ConfigError for a file that is none."""
        if self.ca_bundle is None:
            return None
        path = Path(self.ca_bundle).expanduser()
        try:
            return ssl.create_default_context(cafile=str(path))
        except OSError as error:
            message = f"{path} is no bundle of certificates: {error.strerror or error}"
            raise ConfigError([Problem(message, key="ca_bundle")]) from error

    @cached_property
    def _secrets(self) -> tuple[str, ...]:
        keys = {each.api_key for each in self.endpoints}
        keys |= {secret for each in self.endpoints for secret in secrets_in_url(each.base_url)}
        keys |= {value for name, value in self.headers.items() if names_secret(name)}
        keys |= {URL(proxy).password or "" for proxy in getproxies().values()}
        keys |= {self.proxy_auth[1]} if self.proxy_auth else set()
        return tuple(sorted((key for key in keys if len(key) >= MIN_SECRET_CHARS), key=len, reverse=True))


def _proxy_of_environment(scheme: str) -> str | None:
    """As curl reads it: without a scheme, it is one of HTTP. It may hold a password."""
    given = getproxies().get(scheme)
    if not given:
        return None
    proxy = given if "://" in given else f"http://{given.lstrip('/')}"
    kind = proxy.partition("://")[0].lower()
    if kind not in ("http", "https"):
        message = f"the environment's {scheme}_proxy is of {kind}, and only proxies of HTTP can be used"
        raise ConfigError([Problem(message, key="proxy")])
    return proxy


def _is_local(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
