"""How earlier reasoning goes back to the provider: the profile says in what form, and for which turns.

A turn is what lies between two messages of the user. Call ids are cut to the provider's length on the same way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from gymlet.wire.deltas import Json
from gymlet.wire.profile import Profile, ReasoningOut
from gymlet.wire.reasoning import TAGS
from gymlet.wire.seal import Thought

Turn = list[tuple[Json, list[Thought]]]
"""The assistant's messages of one turn, each with the reasoning that led to it."""

FIELD_FORMS: tuple[ReasoningOut, ...] = ("reasoning_content", "reasoning")


def _joined(thoughts: list[Thought]) -> str:
    return "".join(thought.text for thought in thoughts)


def _back_in(field: str) -> Callable[[Json, list[Thought]], None]:
    def put(message: Json, thoughts: list[Thought]) -> None:
        if text := _joined(thoughts):
            message[field] = text

    return put


def _back_in_details(message: Json, thoughts: list[Thought]) -> None:
    details = [entry for thought in thoughts for entry in thought.details]
    if details:
        message["reasoning_details"] = details
    elif text := _joined(thoughts):
        message["reasoning"] = text


def _back_in_parts(message: Json, thoughts: list[Thought]) -> None:
    if text := _joined(thoughts):
        content = message.get("content") or []
        answer = [{"type": "text", "text": content}] if isinstance(content, str) else content
        message["content"] = [{"type": "thinking", "thinking": [{"type": "text", "text": text}]}, *answer]


def _back_in_tags(message: Json, thoughts: list[Thought]) -> None:
    tagged = "".join(f"<think>{thought.text}</think>" for thought in thoughts if thought.text)
    if tagged:
        content = message.get("content") or ""
        message["content"] = (
            tagged + content if isinstance(content, str) else [{"type": "text", "text": tagged}, *content]
        )


WAY_BACK: dict[ReasoningOut, Callable[[Json, list[Thought]], None]] = {
    "none": lambda _message, _thoughts: None,
    **{field: _back_in(field) for field in FIELD_FORMS},
    "reasoning_details": _back_in_details,
    "mistral_parts": _back_in_parts,
    "think_tags": _back_in_tags,
}
"""How a message carries the reasoning that led to it."""


def shorten_ids(messages: list[Json], length: int) -> None:
    """Give calls and their outputs ids of this length, the same for the same call."""
    for message in messages:
        for call in message.get("tool_calls") or ():
            call["id"] = short_id(call["id"], length)
        if message.get("tool_call_id"):
            message["tool_call_id"] = short_id(message["tool_call_id"], length)


def short_id(call_id: str, length: int) -> str:
    """The id itself where it fits, else one of ``length`` letters and digits that is the same each time."""
    if len(call_id) == length and call_id.isalnum():
        return call_id
    return hashlib.blake2b(call_id.encode()).hexdigest()[:length]


def earlier_messages(messages: list[Json], profile: Profile) -> list[Json]:
    """Chat messages as they came through the chat door, their reasoning in the form that the provider wants back."""
    if not profile.uses_reasoning_parser and profile.reasoning_out is None:
        return messages
    sent: list[Json] = []
    turn: Turn = []
    for message in messages:
        if message["role"] == "assistant":
            turn.append(_parted(message, profile))
            sent.append(turn[-1][0])
            continue
        if message["role"] != "tool":
            give_back(turn, profile, is_last=False)
            turn = []
        sent.append(dict(message))
    give_back(turn, profile, is_last=True)
    if profile.call_id_length is not None:
        shorten_ids(sent, profile.call_id_length)
    return sent


def _parted(message: Json, profile: Profile) -> tuple[Json, list[Thought]]:
    """An assistant's message, and the reasoning in it."""
    text = next((message[field] for field in FIELD_FORMS if isinstance(message.get(field), str)), "")
    details = [entry for entry in message.get("reasoning_details") or () if isinstance(entry, dict)]
    rest = {key: value for key, value in message.items() if key not in (*FIELD_FORMS, "reasoning_details")}
    if isinstance(rest.get("content"), str):
        rest["content"] = plain_answer(rest["content"], profile)
    if rest.get("tool_calls"):
        rest["tool_calls"] = [dict(call) for call in rest["tool_calls"]]
    return rest, [Thought(text, details)] if text or details else []


def plain_answer(text: str, profile: Profile) -> str:
    """An earlier answer as it goes back: without its think block, where tags are no words of it."""
    if not profile.uses_reasoning_parser or profile.reasoning_in == "field":
        return text
    return strip_think(text)


def give_back(turn: Turn, profile: Profile, *, is_last: bool) -> None:
    """Put the reasoning of a turn back into its messages, if the provider wants it there."""
    when, form = profile.reasoning_out_when, profile.way_back
    if when == "same_turn" and not is_last:
        return
    if when == "tool_turns" and not any(message.get("tool_calls") for message, _ in turn):
        return
    for message, thoughts in turn:
        WAY_BACK[form](message, thoughts)
        if when == "tool_turns" and form in FIELD_FORMS:
            message.setdefault(form, "")


def strip_think(text: str) -> str:
    """An earlier answer without the think block at its start; a tag that is never closed is a word of the answer."""
    start = text.lstrip()
    for opening, closing in TAGS.items():
        if start.startswith(opening):
            _, found, rest = start.partition(closing)
            return rest if found else text
    return text
