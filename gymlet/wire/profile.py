"""What a provider's chat dialect differs in, as data: each field is one key of a provider's YAML.

The defaults are OpenAI's own dialect. docs/providers.md shows how the providers that come along differ from it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Literal

from gymlet.wire.deltas import Json

ReasoningIn = Literal["auto", "field", "interleaved_tags"]
ReasoningOut = Literal["none", "reasoning_content", "reasoning", "reasoning_details", "mistral_parts", "think_tags"]
EffortForm = Literal[
    "reasoning_effort",
    "reasoning",
    "thinking",
    "thinking_and_effort",
    "chat_template_kwargs",
    "chat_template_args",
    "enable_thinking",
    "gemini",
    "none",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """How to speak to one model of one provider.

    Reading a reply:
        ``uses_reasoning_parser``: read think tags and reasoning fields as reasoning; without, content passes untouched.
        ``reasoning_in``: ``auto`` (fields, else tags at the start), ``field`` (tags are literal), ``interleaved_tags``
        (a block may open anywhere in the answer).
        ``starts_in_reasoning``: patterns of models whose template has already opened the think block.
        ``unclosed_reasoning``: what a think block without its closing tag is, once the model has stopped by itself.
        ``completion_excludes_reasoning``: completion_tokens and total_tokens both leave the reasoning out.
        ``reasoning_output``: how reasoning is shown to the client.
    Writing a request:
        ``reasoning_out``: how earlier reasoning goes back; unset, it is not sent (it goes back in think tags where no
        parser is used). ``reasoning_out_when``: on all turns, only on those with tool calls (there an empty field where
        there is none), or only on the one that goes on.
        ``effort``: where the reasoning effort is put; ``effort_values``: what this provider calls an effort.
        ``logprobs``: a flag beside ``top_logprobs``, as OpenAI's, or the number of them.
        ``forced_tool_choice_disables_thinking``: it refuses a forced tool while it thinks.
        ``max_tokens_key``, ``system_role``, ``tool_choice_map``, ``strict_schema``, ``include_usage``,
        ``drop_params``, ``call_id_length``: as they say. ``unsupported_tools``: refuse or drop hosted tools.
        ``extra_body``: merged under every request.
    """

    model: str
    uses_reasoning_parser: bool = False
    reasoning_in: ReasoningIn = "auto"
    starts_in_reasoning: tuple[str, ...] = ()
    unclosed_reasoning: Literal["reasoning", "answer"] = "reasoning"
    completion_excludes_reasoning: bool = False
    reasoning_output: Literal["summary", "content", "open_responses"] = "summary"
    reasoning_out: ReasoningOut | None = None
    reasoning_out_when: Literal["always", "tool_turns", "same_turn"] = "always"
    effort: EffortForm = "reasoning_effort"
    effort_values: dict[str, str] = field(default_factory=dict)
    forced_tool_choice_disables_thinking: bool = False
    max_tokens_key: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    system_role: Literal["developer", "system"] = "developer"
    tool_choice_map: dict[str, str] = field(default_factory=dict)
    strict_schema: bool = True
    logprobs: Literal["flag", "count"] = "flag"
    include_usage: bool = True
    drop_params: tuple[str, ...] = ()
    call_id_length: int | None = None
    unsupported_tools: Literal["refuse", "drop"] = "refuse"
    extra_body: Json = field(default_factory=dict)

    @property
    def way_back(self) -> ReasoningOut:
        """How earlier reasoning is sent."""
        return self.reasoning_out or ("none" if self.uses_reasoning_parser else "think_tags")

    @property
    def opens_in_reasoning(self) -> bool:
        """Whether this model's replies begin inside a think block."""
        model = self.model.lower()
        return any(fnmatch(model, pattern.lower()) for pattern in self.starts_in_reasoning)
