"""A real language model on this machine's CPU, for trying everything without a key."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from gymlet.config.schema import ModelOptions, PositiveFloat, PositiveInt
from gymlet.serve.model import ModelServer
from gymlet.upstream.provider import Endpoint, Provider
from responses_api_models.local_model.engine import (
    Engine,
    EngineError,
    EngineSpec,
    default_threads,
    free_port,
    packaged_weights,
)

FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalModelOptions(ModelOptions):
    """``gguf``: a model file; without one, the packaged SmolLM2. ``slots``: replies at once, each with its context.

    ``chat_template``: a Jinja file, in this folder or by absolute path, instead of the model's own.
    """

    model: str = "SmolLM2-135M-Instruct"
    gguf: str | None = None
    slots: PositiveInt = 2
    context_tokens: PositiveInt = 2048
    max_output_tokens_default: PositiveInt = 512
    threads: PositiveInt | None = None
    chat_template: str | None = None
    ready_timeout_s: PositiveFloat = 60.0
    max_restarts: int = 3


class LocalModel(ModelServer):
    """llama.cpp in a process of its own; to the rest, a provider like any other."""

    Options: ClassVar[type[ModelOptions]] = LocalModelOptions
    single: ClassVar[bool] = True
    options: LocalModelOptions
    _engine: Engine | None = None

    @property
    def origin(self) -> str:
        """The weights, and the template that puts questions to them."""
        return ",".join(("local", self.options.gguf or "", self.options.chat_template or ""))

    async def open_provider(self) -> Provider:
        """Start the engine. Raises EngineError."""
        options = self.options
        spec = EngineSpec(
            gguf=options.gguf or packaged_weights(),
            port=free_port(),
            slots=options.slots,
            context_tokens=options.context_tokens,
            max_output_tokens_default=options.max_output_tokens_default,
            threads=options.threads or default_threads(),
            chat_template=_template(options.chat_template) if options.chat_template else "",
        )
        self._engine = Engine(spec, ready_timeout_s=options.ready_timeout_s, max_restarts=options.max_restarts)
        base_url = await self._engine.start()
        return Provider(endpoints=(Endpoint(base_url),), num_concurrent_requests=options.slots)

    async def close_provider(self) -> None:
        """End the engine."""
        if self._engine is not None:
            await self._engine.stop()


def _template(name: str) -> str:
    path = FOLDER / name
    if not path.is_file():
        raise EngineError(f"there is no chat template at {path}")
    return path.read_text()
