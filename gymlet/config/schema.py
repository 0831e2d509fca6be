"""What a configuration may say: frozen dataclasses, made once at the door.

A plug-in subclasses the options of its kind and adds its own keys; ``bind`` makes them out of a plain mapping.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

import msgspec

from gymlet.config.problems import Problem, near_miss
from gymlet.wire.profile import Profile

Json = dict[str, Any]
InstanceType = Literal["responses_api_models", "resources_servers", "responses_api_agents"]
INSTANCE_TYPES: tuple[InstanceType, ...] = ("responses_api_models", "resources_servers", "responses_api_agents")

Url = Annotated[str, "url"]
Secret = Annotated[str, "secret"]
"""Goes into an HTTP header; white space around it is not part of it."""

PositiveInt = Annotated[int, msgspec.Meta(ge=1)]
NonNegativeInt = Annotated[int, msgspec.Meta(ge=0)]
PositiveFloat = Annotated[float, msgspec.Meta(gt=0)]
NonNegativeFloat = Annotated[float, msgspec.Meta(ge=0)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]

KEYS_WITHOUT_MEANING = frozenset(
    {
        "entrypoint", "domain", "verified", "verified_url", "description", "value", "datasets", "num_workers", "host",
        "port", "license", "reward_range", "profiling_enabled", "profiling_results_dirpath",
    }
)  # fmt: skip
"""Keys of NeMo Gym that say nothing here, or that are read elsewhere; accepted on every instance."""


@dataclass(frozen=True, slots=True)
class Instance:
    """One server instance as composed: ``options`` is everything below its implementation.

    ``sources`` says for each option which file, or the command line, set it.
    """

    name: str
    type: InstanceType
    implementation: str
    entrypoint: str
    options: Json
    source: str | None = None
    sources: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadServer:
    """Where the one server listens, and to whom; docs/serving.md says what each key does."""

    host: str = "127.0.0.1"
    port: Port = 11000
    api_key: str | tuple[str, ...] | None = field(default=None, repr=False)
    allow_anonymous: bool = False
    cors_origins: tuple[str, ...] = ()
    header_timeout_s: PositiveFloat = 15.0
    body_timeout_s: PositiveFloat = 60.0
    shutdown_timeout_s: NonNegativeFloat = 30.0

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys that a client may send; none: whoever comes is let in."""
        given = (self.api_key,) if isinstance(self.api_key, str) else self.api_key or ()
        return tuple(key.strip() for key in given)

    def url(self, port: int | None = None) -> str:
        """Where a client finds it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port if port is None else port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """The keys of ng_run beside head_server. ``num_workers``: the processes that serve; ids have room for 256."""

    num_workers: Annotated[int, msgspec.Meta(ge=1, le=256)] = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerRef:
    """A reference from one instance to another."""

    type: InstanceType
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions(Profile):
    """What every model server understands: its dialect (see wire.profile), and how much it takes and keeps."""

    num_concurrent_requests: PositiveInt = 1000
    max_stored_responses: NonNegativeInt = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderOptions(ModelOptions):
    """A hosted provider that speaks OpenAI's chat completions."""

    base_url: Url
    api_key: Secret = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentOptions:
    """What every environment understands. ``base_url``: it is served there, not here, to whoever has ``api_key``."""

    base_url: Url | None = None
    api_key: Secret | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentOptions:
    """What every agent understands. ``max_steps``: the most calls of the model in one rollout."""

    resources_server: ServerRef
    model_server: ServerRef
    max_steps: PositiveInt | None = None
    skip_verification: bool = False
    skip_verification_reward: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectOptions:
    """The keys of ng_collect_rollouts; docs/rollouts.md says what each does."""

    input_jsonl_fpath: str
    output_jsonl_fpath: str
    agent_name: str | None = None
    limit: PositiveInt | None = None
    num_repeats: PositiveInt | dict[str, PositiveInt] | None = None
    num_repeats_add_seed: bool = False
    num_samples_in_parallel: PositiveInt | None = None
    responses_create_params: Json = field(default_factory=dict)
    resume_from_cache: bool | None = None
    overwrite: bool = False
    force_resume: bool = False
    prompt_config: str | None = None
    disable_aggregation: bool = False
    allow_incomplete: bool = False
    rollout_timeout_s: PositiveFloat | None = None


T = TypeVar("T")


def bind(
    cls: type[T], options: Mapping[str, Any], *, where: str, sources: Mapping[str, str | None] | None = None
) -> tuple[T | None, list[Problem]]:
    """``options`` as ``cls``, or every mistake in them: unknown keys, missing ones, wrong types and values.

    ``where`` is the dotted path of the options; ``sources`` says where each was set.
    """
    sources = sources or {}
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = {each.name: each for each in dataclasses.fields(cls)}  # type: ignore[arg-type]
    problems = [
        Problem(f"unknown key; {near_miss(key, fields)}", key=f"{where}.{key}", source=sources.get(key))
        for key in options
        if key not in fields and key not in KEYS_WITHOUT_MEANING
    ]
    values: Json = {}
    for name, each in fields.items():
        if name in options:
            try:
                values[name] = _convert(options[name], hints[name])
            except ValueError as error:
                problems.append(Problem(str(error), key=f"{where}.{name}", source=sources.get(name)))
        elif each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING:
            problems.append(Problem("is required", key=f"{where}.{name}", source=next(iter(sources.values()), None)))
    return (None if problems else cls(**values)), problems


def _convert(value: object, hint: Any) -> object:
    converted = msgspec.convert(value, hint)  # a ValidationError is a ValueError
    if converted is not None and _is(Url, hint):
        _check_url(str(converted))
    if converted is not None and _is(Secret, hint):
        return _header_value(str(converted))
    return converted


def _check_url(url: str) -> None:
    parts = urlsplit(url)
    if parts.username or parts.password:
        raise ValueError("must not hold a user or a password; put the key into api_key")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"'{url}' is no URL; it must begin with http:// or https:// and name a host")


def _header_value(secret: str) -> str:
    stripped = secret.strip()
    if not (stripped.isascii() and stripped.isprintable()) and stripped:
        raise ValueError("has characters that no HTTP header may have, such as a line break in its middle")
    return stripped


def _is(kind: Any, hint: Any) -> bool:
    return hint == kind or kind in typing.get_args(hint)
