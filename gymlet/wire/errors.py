"""The error tree, named by whose fault it is.

    GymletError
    ├── RequestError            the client's request is wrong            400, 404, 413
    ├── ProviderError           the model provider failed                its own status, 429, 502, 503, 504
    │   └── StreamError         it failed after its first byte           told in the stream
    ├── AgentError              the agent broke                          500
    ├── EnvironmentFault        seeding a session or a tool broke        500
    └── VerifierError           the verifier broke                       500

Each carries ``failure_class``, the name under which a failed rollout is filed (see docs/rollouts.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

FailureClass = Literal[
    "provider_unavailable",
    "provider_rate_limited",
    "provider_quota_exhausted",
    "provider_rejected",
    "provider_stream_broken",
    "timeout",
    "agent_error",
    "environment_error",
    "verifier_error",
    "invalid_row",
]


MAX_MESSAGE_CHARS = 2000
"""Some providers answer with a page of HTML, or echo the whole request."""


def cut(message: str) -> str:
    """As much of a message as is told."""
    return message if len(message) <= MAX_MESSAGE_CHARS else message[: MAX_MESSAGE_CHARS - 1] + "…"


class GymletError(Exception):
    """Any failure that gymlet names. ``str(error)`` is written for the person who reads it."""

    status: int = 500
    type: str = "server_error"
    failure_class: FailureClass = "agent_error"

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        param: str | None = None,
        failure_class: FailureClass | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.param = param
        if status is not None:
            self.status = status
        if failure_class is not None:
            self.failure_class = failure_class

    def amend(self, words: str) -> None:
        """Add to the message."""
        self.message += words
        self.args = (self.message,)

    def hide(self, redact: Callable[[str], str]) -> None:
        """Take out what nobody may see, then what is too long: of half a secret nobody would know what it is."""
        self.message = cut(redact(self.message))
        self.args = (self.message,)
        self.code = None if self.code is None else redact(self.code)


class RequestError(GymletError):
    """The request cannot be served as it is; nothing was sent to the provider. ``param`` names the field."""

    status = 400
    type = "invalid_request_error"
    failure_class = "invalid_row"


class ProviderError(GymletError):
    """The provider refused or failed. ``status`` is its own where it sent one.

    ``retry_after`` is the header's value, to be passed on; ``wait_s`` what the provider asks to wait, however it said
    so; ``request_id`` is the provider's. ``transient``: another attempt may succeed; ``unreachable``: there was no
    connection.
    """

    status = 502
    type = "model_error"
    failure_class: FailureClass = "provider_unavailable"

    def __init__(  # noqa: PLR0913  facts of one failure
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        param: str | None = None,
        failure_class: FailureClass | None = None,
        error_type: str | None = None,
        retry_after: str | None = None,
        request_id: str | None = None,
        wait_s: float | None = None,
        transient: bool = False,
        unreachable: bool = False,
    ) -> None:
        super().__init__(message, status=status, code=code, param=param, failure_class=failure_class)
        if error_type is not None:
            self.type = error_type
        self.retry_after = retry_after
        self.request_id = request_id
        self.wait_s = wait_s
        self.transient = transient
        self.unreachable = unreachable

    def hide(self, redact: Callable[[str], str]) -> None:
        """Take out what nobody may see."""
        super().hide(redact)
        self.request_id = None if self.request_id is None else redact(self.request_id)


class StreamError(ProviderError):
    """The provider's stream broke, lied or ended without a finish."""

    failure_class = "provider_stream_broken"


class AgentError(GymletError):
    """An agent raised while it ran a task."""


class EnvironmentFault(GymletError):  # noqa: N818  EnvironmentError is a builtin
    """An environment raised while it seeded a session or ran a tool."""

    failure_class = "environment_error"


class VerifierError(GymletError):
    """A verifier raised, or answered without a reward."""

    failure_class = "verifier_error"
