"""How each provider is asked for an amount of reasoning; and the parameters that it does not take.

Sources: the providers' API references; see docs/providers.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from gymlet.wire.deltas import Json
from gymlet.wire.profile import EffortForm, Profile

GEMINI_BUDGETS = {"none": 0, "minimal": 1024, "low": 1024, "medium": 8192, "high": 24576}
"""Thinking tokens that Gemini's own compatibility layer stands an effort for."""


def _thinking(effort: str) -> Json:
    return {"thinking": {"type": "disabled" if effort == "none" else "enabled"}}


def _thinking_and_effort(effort: str) -> Json:
    return _thinking(effort) if effort == "none" else {**_thinking(effort), "reasoning_effort": effort}


def _gemini(effort: str) -> Json:
    budget = GEMINI_BUDGETS.get(effort, -1)
    thinking: Json = {"thinking_budget": budget, "include_thoughts": budget != 0}
    return {"extra_body": {"google": {"thinking_config": thinking}}}


EFFORTS: dict[EffortForm, Callable[[str], Json]] = {
    "reasoning_effort": lambda effort: {"reasoning_effort": effort},
    "reasoning": lambda effort: {"reasoning": {"effort": effort}},
    "thinking": _thinking,
    "thinking_and_effort": _thinking_and_effort,
    "chat_template_kwargs": lambda effort: {"chat_template_kwargs": {"enable_thinking": effort != "none"}},
    "chat_template_args": lambda effort: {"chat_template_args": {"enable_thinking": effort != "none"}},
    "enable_thinking": lambda effort: {"enable_thinking": effort != "none"},
    "gemini": _gemini,
    "none": lambda _effort: {},
}


def adapt(body: Json, profile: Profile) -> Json:
    """A chat request in OpenAI's own terms, in the provider's."""
    effort = body.pop("reasoning_effort", None)
    choice = body.get("tool_choice")
    forced = isinstance(choice, dict) or choice == "required"
    if forced and profile.forced_tool_choice_disables_thinking:
        effort = "none"
    if isinstance(effort, str):
        body = _merge(body, EFFORTS[profile.effort](profile.effort_values.get(effort, effort)))
    if isinstance(choice, str):
        body["tool_choice"] = profile.tool_choice_map.get(choice, choice)
    if body.get("logprobs") and profile.logprobs == "count":
        body["logprobs"] = body.pop("top_logprobs", None) or 1
    if body.get("stream") and not profile.include_usage:
        body.pop("stream_options", None)
    for name in profile.drop_params:
        body.pop(name, None)
    return body


def limit_under(key: str, body: Json) -> Json:
    """The parameters, with the token limit under the one name that the provider has for it."""
    other = "max_tokens" if key == "max_completion_tokens" else "max_completion_tokens"
    if other not in body:
        return body
    return {**{name: value for name, value in body.items() if name != other}, key: body[other]}


def thinking_is_off(body: Json) -> bool:
    """Whether a request, in any provider's terms, asks for no reasoning."""
    switches = [body, body.get("chat_template_kwargs"), body.get("chat_template_args")]
    off = any(isinstance(holder, dict) and holder.get("enable_thinking") is False for holder in switches)
    thinking, reasoning = body.get("thinking"), body.get("reasoning")
    return (
        off
        or body.get("reasoning_effort") == "none"
        or (isinstance(thinking, dict) and thinking.get("type") == "disabled")
        or (isinstance(reasoning, dict) and (reasoning.get("effort") == "none" or reasoning.get("enabled") is False))
    )


def _merge(under: Json, over: Mapping[str, object]) -> Json:
    """``over`` into a copy of ``under``, object by object."""
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged
