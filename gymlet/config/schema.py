"""What a configuration may say: frozen dataclasses, made once at the door.

A plug-in subclasses the options of its kind and adds its own keys; ``bind`` makes them out of a plain mapping.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Callable, Mapping
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

Headers = Annotated[dict[str, str], "headers"]
"""Sent with every request."""

Sqlite = Annotated[str, "sqlite"]
"""A file of SQLite's, as ``sqlite:PATH``."""

PositiveInt = Annotated[int, msgspec.Meta(ge=1)]
Repeats = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
NonNegativeInt = Annotated[int, msgspec.Meta(ge=0)]
PositiveFloat = Annotated[float, msgspec.Meta(gt=0)]
NonNegativeFloat = Annotated[float, msgspec.Meta(ge=0)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
NumWorkers = Annotated[int, msgspec.Meta(ge=1, le=256)]

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

    num_workers: NumWorkers = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerRef:
    """A reference from one instance to another."""

    type: InstanceType
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions(Profile):
    """What every model server understands: its dialect (see wire.profile), how much it takes, how long it waits.

    Limits are of each endpoint with its key; docs/reliability.md says what each key does, and docs/cache.md what the
    cache's do. Times are in seconds.
    """

    num_concurrent_requests: PositiveInt = 1000
    adaptive_concurrency: bool = True
    requests_per_minute: PositiveInt | None = None
    tokens_per_minute: PositiveInt | None = None
    max_queued_requests: NonNegativeInt = 65_536
    queue_timeout_s: PositiveFloat = 3600.0
    max_retries: NonNegativeInt = 10
    retry_base_s: PositiveFloat = 0.5
    retry_max_s: PositiveFloat = 60.0
    max_retry_s: PositiveFloat = 900.0
    max_retry_after_s: PositiveFloat = 300.0
    connect_timeout_s: PositiveFloat = 30.0
    first_byte_timeout_s: PositiveFloat = 600.0
    idle_timeout_s: PositiveFloat = 300.0
    total_timeout_s: PositiveFloat = 3600.0
    max_stored_responses: NonNegativeInt = 1000
    cache: Sqlite | None = None
    max_cache_bytes: PositiveInt | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderOptions(ModelOptions):
    """A hosted provider that speaks OpenAI's chat completions; several endpoints or keys are lists of one length."""

    base_url: Url | list[Url]
    api_key: Secret | list[Secret] = field(repr=False)
    weights: list[PositiveFloat] | None = None
    headers: Headers = field(default_factory=dict, repr=False)
    proxy: Url | None = None
    proxy_user: str | None = None
    proxy_password: Secret | None = field(default=None, repr=False)
    ca_bundle: str | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for lists of different lengths."""
        given = {"base_url": self.base_url, "api_key": self.api_key, "weights": self.weights}
        lists = {key: value for key, value in given.items() if isinstance(value, list)}
        if any(not value for value in lists.values()):
            raise ValueError(f"{' and '.join(lists)}: an empty list names no endpoint")
        if len({len(value) for value in lists.values()}) > 1:
            told = ", ".join(f"{key} has {len(value)}" for key, value in lists.items())
            raise ValueError(f"lists must have one entry for each endpoint: {told}")

    @property
    def base_urls(self) -> list[str]:
        """Where the endpoints are, as many as there are."""
        return _repeated(self.base_url, self._count)

    @property
    def api_keys(self) -> list[str]:
        """The key of each endpoint."""
        return _repeated(self.api_key, self._count)

    @property
    def _count(self) -> int:
        return max(len(value) if isinstance(value, list) else 1 for value in (self.base_url, self.api_key))


def _repeated(given: str | list[str], count: int) -> list[str]:
    return list(given) if isinstance(given, list) else [given] * count


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
    num_repeats: Repeats | dict[str, Repeats] | None = None
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
    shard_index: NonNegativeInt = 0
    num_shards: PositiveInt = 1
    executor: Literal["local", "ray"] = "local"
    ray_address: str | None = None
    num_workers: NumWorkers = 1
    cache: Sqlite | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for a shard that there is not, and for two ways to be several processes."""
        if self.shard_index >= self.num_shards:
            there = "0" if self.num_shards == 1 else f"0 to {self.num_shards - 1}"
            raise ValueError(f"shard_index is {self.shard_index}; with num_shards={self.num_shards} there are {there}")
        if self.executor == "ray" and self.num_workers > 1:
            raise ValueError(
                "num_workers is of executor=local; with executor=ray each node is one process: leave it out"
            )


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
                message = f"{error}{_choices(options[name], hints[name])}"
                problems.append(Problem(message, key=f"{where}.{name}", source=sources.get(name)))
        elif each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING:
            problems.append(Problem("is required", key=f"{where}.{name}", source=next(iter(sources.values()), None)))
    if problems:
        return None, problems
    try:
        return cls(**values), []
    except ValueError as error:
        return None, [Problem(str(error), key=where, source=next(iter(sources.values()), None))]


def _convert(value: object, hint: Any) -> Any:
    converted = msgspec.convert(value, hint)  # a ValidationError is a ValueError
    if converted is None:
        return None
    for kind, check in _CHECKS.items():
        if _mentions(kind, hint):
            return [check(each) for each in converted] if isinstance(converted, list) else check(converted)
    return converted


def _choices(value: object, hint: Any) -> str:
    """What a value that is one of a few might have been."""
    choices = typing.get_args(hint) if typing.get_origin(hint) is Literal else ()
    return f"; {near_miss(str(value), choices)}" if choices else ""


def _checked_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.username or parts.password:
        raise ValueError("must not hold a user or a password; put the key into api_key")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"'{url}' is no URL; it must begin with http:// or https:// and name a host")
    return url


def _header_value(value: str) -> str:
    stripped = value.strip()
    if not (stripped.isascii() and stripped.isprintable()) and stripped:
        raise ValueError("has characters that no HTTP header may have, such as a line break in its middle")
    return stripped


def _checked_headers(headers: dict[str, str]) -> dict[str, str]:
    for name in headers:
        if name.lower() in _OWN_HEADERS:
            raise ValueError(f"'{name}' is not to be set: the request's own framing, or the api_key, decides it")
        if not _HEADER_NAME.fullmatch(name):
            raise ValueError(f"'{name}' is no name of an HTTP header")
    return {name: _header_value(value) for name, value in headers.items()}


def _checked_sqlite(setting: str) -> str:
    scheme, _, path = setting.partition(":")
    if scheme != "sqlite" or not path:
        raise ValueError(f"'{setting}' must be sqlite:PATH")
    return setting


_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_OWN_HEADERS = frozenset(
    {
        "host", "content-length", "content-type", "content-encoding", "transfer-encoding", "connection", "keep-alive",
        "upgrade", "te", "trailer", "expect", "proxy-authorization", "accept-encoding", "authorization",
    }
)  # fmt: skip

_CHECKS: dict[Any, Callable[[Any], Any]] = {
    Url: _checked_url,
    Secret: _header_value,
    Headers: _checked_headers,
    Sqlite: _checked_sqlite,
}


def _mentions(kind: Any, hint: Any) -> bool:
    return hint == kind or any(_mentions(kind, inner) for inner in typing.get_args(hint))
