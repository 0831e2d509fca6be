"""Any hosted provider that speaks OpenAI's chat completions."""

from __future__ import annotations

from typing import ClassVar
from urllib.parse import urlsplit

from gymlet.config.schema import ModelOptions, ProviderOptions
from gymlet.serve.model import ModelServer
from gymlet.upstream.provider import Endpoint, Provider


class InferenceProvider(ModelServer):
    """The model is elsewhere: ``base_url`` says where, ``api_key`` opens the door."""

    Options: ClassVar[type[ModelOptions]] = ProviderOptions
    options: ProviderOptions

    @property
    def origin(self) -> str:
        """The provider's host and path, or all of them: at some hosts the path says which model it is."""
        places = (urlsplit(url) for url in self.options.base_urls)
        return ",".join(dict.fromkeys(place.netloc + place.path.rstrip("/") for place in places))

    async def open_provider(self) -> Provider:
        """The provider as configured."""
        options = self.options
        weights = options.weights or [1.0] * len(options.base_urls)
        password = options.proxy_password or ""
        return Provider(
            endpoints=tuple(map(Endpoint, options.base_urls, options.api_keys, weights)),
            num_concurrent_requests=options.num_concurrent_requests,
            headers=options.headers,
            proxy=options.proxy,
            proxy_auth=(options.proxy_user, password) if options.proxy_user else None,
            ca_bundle=options.ca_bundle,
        )
