"""Earlier items to chat messages.

Reasoning, a message and the calls that follow it are one assistant message, as chat servers expect. What has no chat
representation is refused by name rather than left out. How earlier reasoning goes back is the profile's to say: a turn
is what lies between two messages of the user, and some providers want it only for turns with tool calls.
"""

from __future__ import annotations

from collections.abc import Callable

from gymlet.wire.deltas import Json
from gymlet.wire.errors import RequestError
from gymlet.wire.fields import check, check_fields, check_length, need, need_id, one_of, shown
from gymlet.wire.profile import Profile
from gymlet.wire.seal import Seal, Thought
from gymlet.wire.tools import custom_arguments, flat_name
from gymlet.wire.way_back import Turn, give_back, plain_answer, shorten_ids


def messages_of(items: list[Json], profile: Profile, seal: Seal, earlier: int = 0) -> list[Json]:
    """The messages that these items are. Raises RequestError, naming the item as the client sent it.

    The first ``earlier`` ones were sent with an earlier request.
    """
    history = _History(profile, seal)
    for position, item in enumerate(items, -earlier):
        history.read(item, f"input[{position}]" if position >= 0 else "previous_response_id")
    return history.close()


class _History:
    """Owns the messages so far, the assistant message that is being put together, and the turn that it belongs to."""

    def __init__(self, profile: Profile, seal: Seal) -> None:
        self._profile = profile
        self._seal = seal
        self._messages: list[Json] = []
        self._turn: Turn = []
        self._turn_start = 0
        self._thoughts: list[Thought] = []
        self._message: Json | None = None
        self._calls: list[Json] = []
        self._signatures: dict[str, Json] = {}

    def read(self, item: Json, path: str) -> None:
        check(item, (dict,), path)
        kind = item.get("type") or ("message" if "role" in item else "")
        check(kind, (str,), f"{path}.type")
        if item.get("id") is not None:
            check(item["id"], (str,), f"{path}.id")
            check_length(item["id"], f"{path}.id")
        read = _ITEMS.get(kind)
        if read is None:
            raise RequestError(
                f"'{path}': an item of type '{shown(kind)}' has no chat representation", param=f"{path}.type"
            )
        read(self, item, path)

    def close(self) -> list[Json]:
        """All messages, once everything was read."""
        self._end_turn(is_last=True)
        for message in self._messages:
            for call in message.get("tool_calls", ()):
                if call["id"] in self._signatures:
                    call["extra_content"] = self._signatures[call["id"]]
        if self._profile.call_id_length is not None:
            shorten_ids(self._messages, self._profile.call_id_length)
        return self._messages

    def read_message(self, item: Json, path: str) -> None:
        role = item.get("role")
        one_of(role, ("user", "system", "developer", "assistant"), f"{path}.role")
        content = item.get("content")
        if role != "assistant":
            self._end_turn()
            check(content, (str, list), f"{path}.content")
            self._messages.append({"role": role, "content": _content(content, f"{path}.content")})  # type: ignore[arg-type]
            return
        if self._message is not None or self._calls:
            self._flush()
        self._message = _assistant(content, f"{path}.content")

    def read_reasoning(self, item: Json, path: str) -> None:
        thought = self._thought(item, path)
        if thought.text and (self._message is not None or self._calls):
            self._flush()
        self._thoughts.append(thought)

    def _thought(self, item: Json, path: str) -> Thought:
        check_fields(item, {"summary": (list,), "content": (list,), "encrypted_content": (str,)}, f"{path}.")
        if item.get("encrypted_content"):
            thought = self._seal.open(item["encrypted_content"], f"{path}.encrypted_content")
            self._signatures |= thought.signatures
            return thought
        key = "summary" if item.get("summary") else "content"
        parts = enumerate(item.get(key) or ())
        return Thought("".join(_text_part(part, f"{path}.{key}[{index}]")["text"] for index, part in parts))

    def read_call(self, item: Json, path: str) -> None:
        arguments = item.get("arguments") or "{}"
        check(arguments, (str,), f"{path}.arguments")
        self._call(item, path, arguments)

    def read_custom_call(self, item: Json, path: str) -> None:
        check(item.get("input"), (str,), f"{path}.input")
        self._call(item, path, custom_arguments(item["input"]))

    def read_output(self, item: Json, path: str) -> None:
        self._flush()
        call_id, output = need_id(item, "call_id", path), item.get("output")
        check(output, (str, list), f"{path}.output")
        if isinstance(output, list):
            _refuse_files(output, path)
            parts = [_part(part, f"{path}.output[{index}]") for index, part in enumerate(output)]
            output = plain(parts) if all(part["type"] == "text" for part in parts) else parts
        self._messages.append({"role": "tool", "tool_call_id": call_id, "content": output})

    def read_reference(self, item: Json, path: str) -> None:
        raise RequestError(
            f"'{path}' refers to the item '{item.get('id')}', which is not stored here (any more); send the item "
            "itself (the AI SDK does with store: false)",
            param=path,
            code="item_not_found",
        )

    def skip(self, _item: Json, _path: str) -> None:
        """It is no part of the history."""

    def _call(self, item: Json, path: str, arguments: str) -> None:
        call_id, name = need_id(item, "call_id", path), need_id(item, "name", path)
        if item.get("namespace"):
            name = flat_name(item["namespace"], name)
        self._calls.append({"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}})

    def _flush(self) -> None:
        """The assistant message so far, if there is one."""
        if self._message is not None or self._calls or self._thoughts:
            message: Json = {"role": "assistant", **(self._message or {"content": None})}
            if isinstance(message["content"], str):
                message["content"] = plain_answer(message["content"], self._profile)
            if self._calls:
                message["tool_calls"] = self._calls
            self._turn.append((message, self._thoughts))
            self._messages.append(message)
        self._thoughts, self._message, self._calls = [], None, []

    def _end_turn(self, *, is_last: bool = False) -> None:
        """Give the turn's messages their reasoning, now that it is known whether tools were called in it."""
        self._flush()
        if self._turn:
            self._place_reasoning(is_last=is_last)
        self._turn, self._turn_start = [], len(self._messages)

    def _place_reasoning(self, *, is_last: bool) -> None:
        give_back(self._turn, self._profile, is_last=is_last)
        empty = {id(message) for message, thoughts in self._turn if thoughts and message == _NOTHING}
        self._messages[self._turn_start :] = [
            message for message in self._messages[self._turn_start :] if id(message) not in empty
        ]


_NOTHING: Json = {"role": "assistant", "content": None}

_ITEMS: dict[str, Callable[[_History, Json, str], None]] = {
    "message": _History.read_message,
    "reasoning": _History.read_reasoning,
    "function_call": _History.read_call,
    "function_call_output": _History.read_output,
    "custom_tool_call": _History.read_custom_call,
    "custom_tool_call_output": _History.read_output,
    "item_reference": _History.read_reference,
    "additional_tools": _History.skip,
}


def plain(content: str | list[Json]) -> str:
    """The text of a message's content."""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def _refuse_files(parts: list[Json], path: str) -> None:
    for part in parts:
        if isinstance(part, dict) and part.get("type") == "input_file":
            raise RequestError(f"'{path}.output': an 'input_file' cannot be sent as a tool's output", param=path)


def _assistant(content: str | list[Json] | None, path: str) -> Json:
    if content is None or isinstance(content, str):
        return {"content": content}
    check(content, (list,), path)
    texts: list[str] = []
    refusals: list[str] = []
    for position, part in enumerate(content):
        check(part, (dict,), f"{path}[{position}]")
        if part.get("type") == "refusal":
            refusals.append(need(part, "refusal", (str,), f"{path}[{position}]"))
        else:
            texts.append(_text_part(part, f"{path}[{position}]")["text"])
    message: Json = {"content": "".join(texts) if texts or not refusals else None}
    return {**message, "refusal": "".join(refusals)} if refusals else message


def _content(content: str | list[Json], path: str) -> str | list[Json]:
    if isinstance(content, str):
        return content
    return [_part(part, f"{path}[{position}]") for position, part in enumerate(content)]


def _part(part: object, path: str) -> Json:
    check(part, (dict,), path)
    assert isinstance(part, dict)  # noqa: S101  just checked
    one_of(part.get("type"), _PARTS, f"{path}.type")
    return _PARTS[part["type"]](part, path)


def _text_part(part: Json, path: str) -> Json:
    check(part, (dict,), path)
    check(part.get("text"), (str,), f"{path}.text")
    return {"type": "text", "text": part["text"]}


def _image_part(part: Json, path: str) -> Json:
    url = need(part, "image_url", (str, dict), path)
    image = url if isinstance(url, dict) else {"url": url}
    return {"type": "image_url", "image_url": image | ({"detail": part["detail"]} if part.get("detail") else {})}


def _file_part(part: Json, path: str) -> Json:
    keys = ("file_id", "file_data", "filename", "file_url")
    if not any(part.get(key) for key in keys):
        raise RequestError(f"'{path}' needs one of {', '.join(keys)}", param=path)
    return {"type": "file", "file": {key: part[key] for key in keys if part.get(key) is not None}}


def _audio_part(part: Json, path: str) -> Json:
    return {"type": "input_audio", "input_audio": need(part, "input_audio", (dict,), path)}


def _video_part(part: Json, path: str) -> Json:
    sources = [part[key] for key in ("video_url", "video") if part.get(key)]
    if len(sources) != 1:
        raise RequestError(f"'{path}' needs exactly one of video_url and video", param=path)
    source = sources[0]
    return {"type": "video_url", "video_url": source if isinstance(source, dict) else {"url": source}}


_PARTS: dict[str, Callable[[Json, str], Json]] = {
    "input_text": _text_part,
    "output_text": _text_part,
    "text": _text_part,
    "input_image": _image_part,
    "input_file": _file_part,
    "input_audio": _audio_part,
    "input_video": _video_part,
}
