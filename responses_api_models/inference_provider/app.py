"""Any hosted provider that speaks OpenAI's chat completions."""

from __future__ import annotations

from typing import ClassVar
from urllib.parse import urlsplit

from gymlet.config.schema import ModelOptions, ProviderOptions
from gymlet.serve.model import ModelServer
from gymlet.serve.upstream import Provider


class InferenceProvider(ModelServer):
    """The model is elsewhere: ``base_url`` says where, ``api_key`` opens the door."""

    Options: ClassVar[type[ModelOptions]] = ProviderOptions
    options: ProviderOptions

    @property
    def origin(self) -> str:
        """The provider's host."""
        return urlsplit(self.options.base_url).netloc

    async def open_provider(self) -> Provider:
        """The provider as configured."""
        return Provider(
            base_url=self.options.base_url,
            model=self.options.model,
            api_key=self.options.api_key,
            num_concurrent_requests=self.options.num_concurrent_requests,
        )
